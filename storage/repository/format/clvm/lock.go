// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
)

// Times in beats. A holder that could not renew its entry for mostBeats has lost its
// lock for good. Others wait longer than that before they take it over, so that what
// it had sent to the disk by then has landed.
const (
	mostBeats  = 5
	judgeBeats = 8
)

// held is a lock of this process: flock(2) among those on this host, and, where other
// hosts write, too, an entry in this host's slot, which it renews.
type held struct {
	place *place
	name  string
	local *lock.Lock
	entry entry // Name "" if there is none
	taken bool

	beaten atomic.Int64 // when the entry was renewed last, by sinceBoot
	lost   atomic.Bool
	failed atomic.Pointer[error]
	done   chan struct{} // nil if nothing renews it

	mu       sync.Mutex // of renewals and the end
	released bool
}

// Lock implements format.Locks.
func (p *place) Lock(ctx context.Context, name string) (format.Lock, error) {
	return p.lock(ctx, name, true)
}

// TryLock implements format.Locks. It waits as long as it takes to tell whether
// another host's holder lives.
func (p *place) TryLock(ctx context.Context, name string) (format.Lock, error) {
	return p.lock(ctx, name, false)
}

func (p *place) lock(ctx context.Context, name string, wait bool) (format.Lock, error) {
	if err := p.writable(); err != nil {
		return nil, err
	}
	h, err := p.acquire(ctx, name, wait)
	if err != nil {
		return nil, err
	}
	if h.entry.Name != "" {
		h.done = make(chan struct{})
		go h.renew()
	}
	return h, nil
}

// acquire takes a lock, which nobody renews yet.
func (p *place) acquire(ctx context.Context, name string, wait bool) (*held, error) {
	take := func() (*lock.Lock, error) { return lock.Try(p.locks, name) }
	if wait {
		take = func() (*lock.Lock, error) { return lock.Acquire(ctx, p.locks, name) }
	}
	local, err := take()
	if err != nil {
		return nil, err
	}
	h := &held{place: p, name: name, local: local}
	if p.area.Writer != "" {
		return h, nil
	}
	h.entry = entry{Name: name, Nonce: uuid.NewString()[:8]}
	if err := h.enter(ctx, wait); err != nil {
		h.leave()
		local.Release()
		return nil, err
	}
	return h, nil
}

// enter announces that this host wants the lock, and has it once no other host's slot
// has an entry of that name: two that announce it at once both see the other, and the
// one with the higher number gives way.
func (h *held) enter(ctx context.Context, wait bool) error {
	announced := false
	watch := h.place.watch(h.entry.Name)
	for {
		if !announced {
			if err := h.beat(false); err != nil {
				return err
			}
			announced = true
		}
		rivals, buried, err := watch.look(ctx)
		switch {
		case err != nil:
			return err
		case len(rivals) == 0:
			h.taken = buried
			return h.Check()
		case !wait && watch.alive:
			return fmt.Errorf("lock %s: host number %d has it: %w", h.entry.Name, rivals[0], lock.ErrHeld)
		}
		if len(rivals) > 0 && rivals[0] < h.place.host.Number {
			h.leave()
			announced = false
			if err := watch.until(ctx, wait); err != nil {
				return err
			}
			continue
		}
		// It gives way, or has the lock already.
		if err := pause(ctx); err != nil {
			return err
		}
		if h.silence() > h.place.host.Beat {
			if err := h.beat(false); err != nil {
				return err
			}
		}
	}
}

// pollInterval is how often somebody who waits looks at the disk.
const pollInterval = 50 * time.Millisecond

// pause waits for that; it fails with lock.ErrHeld when ctx ends.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", lock.ErrHeld, ctx.Err())
	case <-time.After(pollInterval):
		return nil
	}
}

// beat writes the entry, with a count that differs from the last. again: it has to be
// there already.
func (h *held) beat(again bool) error {
	began := sinceBoot()
	h.entry.Beat++
	err := h.place.update(func(r *register) error {
		if i := r.index(h.entry.Name); i >= 0 && r.Entries[i].Nonce == h.entry.Nonce {
			r.Entries[i] = h.entry
			return nil
		} else if again {
			return failure.New(failure.Temporary, "lock %s: its entry was taken away", h.entry.Name)
		} else if i >= 0 {
			r.Entries[i] = h.entry // of a process that died: the local lock is ours
			return nil
		}
		r.Entries = append(r.Entries, h.entry)
		return nil
	})
	if err != nil {
		h.failed.Store(&err)
		return err
	}
	h.beaten.Store(int64(began))
	return nil
}

func (h *held) renew() {
	for {
		select {
		case <-h.done:
			return
		case <-time.After(h.place.host.Beat):
		}
		h.mu.Lock()
		if !h.released && h.Check() == nil {
			_ = h.beat(true) // Check tells, once it has failed for long
		}
		h.mu.Unlock()
	}
}

// leave takes the entry away. One that stays is judged dead by others in time.
func (h *held) leave() {
	_ = h.place.update(func(r *register) error {
		if i := r.index(h.entry.Name); i >= 0 && r.Entries[i].Nonce == h.entry.Nonce {
			r.Entries = append(r.Entries[:i], r.Entries[i+1:]...)
		}
		return nil
	})
}

func (h *held) silence() time.Duration { return sinceBoot() - time.Duration(h.beaten.Load()) }

// sinceBoot counts while the host is asleep, too (clock_gettime(2)).
func sinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}

// Check implements format.Lock. Who was silent for too long has lost the lock, even
// if the disk answers again: another host may have taken it over meanwhile.
func (h *held) Check() error {
	if h.entry.Name == "" {
		return nil
	}
	silent := h.silence()
	if silent < mostBeats*h.place.host.Beat && !h.lost.Load() {
		return nil
	}
	h.lost.Store(true)
	err := failure.New(failure.Temporary, "lock %s: it was not renewed for %v, and may be another host's", h.entry.Name, silent.Round(time.Second))
	if why := h.failed.Load(); why != nil {
		err = fmt.Errorf("%w: %w", err, *why)
	}
	return err
}

// TakenOver implements format.Lock.
func (h *held) TakenOver() bool { return h.taken }

// File implements format.Lock. A child keeps those on this host out; nobody renews the
// entry for it.
func (h *held) File() *os.File { return h.local.File() }

// Release implements format.Lock. Storage that hangs is left to the other hosts'
// judgement.
func (h *held) Release() {
	defer h.local.Release()
	if h.entry.Name == "" {
		return
	}
	if h.done != nil {
		close(h.done)
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.released = true
		h.leave()
	}()
	select {
	case <-left:
	case <-time.After(mostBeats * h.place.host.Beat):
	}
}

// Discard removes the local lock's file while it is held: whoever has opened it
// notices that, and makes another.
func (h *held) Discard() {
	_ = os.Remove(filepath.Join(h.place.locks, h.name))
	h.Release()
}

// Held implements format.Locks. What a host that may only read cannot tell is false.
func (p *place) Held(ctx context.Context, name string) (bool, error) {
	if p.writable() != nil {
		return false, nil
	}
	local, err := lock.Held(p.locks, name)
	if err != nil || local || p.area.Writer != "" {
		return local, err
	}
	watch := p.watch(name)
	for {
		rivals, _, err := watch.look(ctx)
		if err != nil || len(rivals) == 0 || watch.alive {
			return len(rivals) > 0, err
		}
		if err := pause(ctx); err != nil {
			return true, nil //nolint:nilerr // nobody could tell in time: then somebody has it
		}
	}
}
