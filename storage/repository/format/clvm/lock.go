// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/heartbeat"
)

// Times in beats. A holder that could not renew its entry for mostBeats has lost its
// lock for good: a path of a LUN takes about 5 to fail over. Others wait longer than that
// before they take it over, so that what it had sent to the disk by then has landed.
const (
	mostBeats  = 10
	judgeBeats = 15
)

// held is a lock of this process: flock(2) among those on this host, and, where other
// hosts write, too, an entry in this host's slot, which it renews.
type held struct {
	place *place
	name  string
	local *lock.Lock
	entry entry            // the heart's
	heart *heartbeat.Heart // nil if there is no entry
	taken bool
	kept  atomic.Bool // the lock is ours, and the entry has to stay there
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
	if h.heart != nil {
		h.kept.Store(true)
		h.heart.Start()
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
	h.heart = heartbeat.New(name, p.host.Beat, mostBeats*p.host.Beat, h.beat)
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
			if err := h.heart.Beat(); err != nil {
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
		if h.heart.Silence() > h.place.host.Beat {
			if err := h.heart.Beat(); err != nil {
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

// beat writes the entry, with a count that differs from the last.
func (h *held) beat() error {
	h.entry.Beat++
	return h.place.update(func(r *register) error {
		i := r.index(h.entry.Name)
		switch {
		case i >= 0 && r.Entries[i].Nonce == h.entry.Nonce:
			r.Entries[i] = h.entry
		case h.kept.Load():
			return failure.New(failure.Temporary, "lock %s: its entry was taken away", h.entry.Name)
		case i >= 0:
			r.Entries[i] = h.entry // of a process that died: the local lock is ours
		default:
			r.Entries = append(r.Entries, h.entry)
		}
		return nil
	})
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

// Check implements format.Lock.
func (h *held) Check() error {
	if h.heart == nil {
		return nil
	}
	return h.heart.Check()
}

// TakenOver implements format.Lock.
func (h *held) TakenOver() bool { return h.taken }

// File implements format.Lock. A child keeps those on this host out; nobody renews the
// entry for it.
func (h *held) File() *os.File { return h.local.File() }

// Release implements format.Lock. Storage that hangs is left to the other hosts'
// judgement.
func (h *held) Release() {
	if h.heart != nil {
		h.heart.Stop(h.leave)
	}
	h.local.Release()
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
