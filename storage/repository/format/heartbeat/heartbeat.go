// SPDX-License-Identifier: Apache-2.0

// Package heartbeat has the holder of a lock show that it lives to hosts that cannot see its
// process, and know by its own clock when these may have stopped to believe it. What a sign
// of life is, and who judges it, is the format's business.
package heartbeat

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// Heart is that of one holding of a lock. It is safe for concurrent use, but for Start and
// Stop, each of which is called once at most, by the holder.
type Heart struct {
	name        string
	every, most time.Duration
	sign        func() error

	beaten atomic.Int64 // when the last sign began to be written, by SinceBoot
	lost   atomic.Bool
	failed atomic.Pointer[error] // why there is none since. Check must not wait for one that hangs
	done   chan struct{}         // nil before Start

	mu      sync.Mutex // of signs and the end
	stopped bool
}

// New makes the heart of the lock called name. sign writes one sign of life, and is called by
// one goroutine at a time. A holder that wrote none for most has lost its lock.
func New(name string, every, most time.Duration, sign func() error) *Heart {
	return &Heart{name: name, every: every, most: most, sign: sign}
}

// Beat writes a sign of life now; after Stop it does nothing.
func (h *Heart) Beat() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return nil
	}
	began := SinceBoot()
	if err := h.sign(); err != nil {
		h.failed.Store(&err)
		return err
	}
	h.beaten.Store(int64(began))
	return nil
}

// Start has signs written from now on, until Stop or until the lock is lost: what is written
// after that makes it ours no more.
func (h *Heart) Start() {
	h.done = make(chan struct{})
	go func() {
		for {
			select {
			case <-h.done:
				return
			case <-time.After(h.every):
			}
			if h.Check() != nil {
				return
			}
			_ = h.Beat() // Check tells, once it has failed for long
		}
	}()
}

// Silence is how long ago the last sign was.
func (h *Heart) Silence() time.Duration { return SinceBoot() - time.Duration(h.beaten.Load()) }

// Check fails once the lock may be somebody else's: for good, even if the storage answers
// again, as another host may have had it meanwhile. It does not wait.
func (h *Heart) Check() error {
	silent := h.Silence()
	if silent < h.most && !h.lost.Load() {
		return nil
	}
	h.lost.Store(true)
	err := failure.New(failure.Temporary, "lock %s: it was not renewed for %v, and may be another host's", h.name, silent.Round(time.Second))
	if why := h.failed.Load(); why != nil {
		err = fmt.Errorf("%w: %w", err, *why)
	}
	return err
}

// Stop ends it, and does last when the last sign is written. Where storage hangs it
// waits as long as a holder may be silent, and last comes when it comes.
func (h *Heart) Stop(last func()) {
	if h.done != nil {
		close(h.done)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.stopped = true
		last()
	}()
	select {
	case <-ended:
	case <-time.After(h.most):
	}
}

// SinceBoot is a clock that counts while the host is asleep, too (clock_gettime(2)).
func SinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
