// SPDX-License-Identifier: Apache-2.0

package clvm_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

// hosts opens a repository of a group with a lock manager on hosts 1, 2, …
func hosts(t *testing.T, n int) (site, []format.Place) {
	s := newSite(t, "sanlock")
	must(t, s.on("h1", 1).Create(t.Context(), shared))
	var all []format.Place
	for i := range n {
		all = append(all, s.open(s.on("h"+string(rune('1'+i)), i+1), shared))
	}
	return s, all
}

// Whoever asks first, and however many: one has the lock at a time.
func TestHostsTakeTurns(t *testing.T) {
	t.Parallel()
	_, all := hosts(t, 3)
	var inside, count atomic.Int32
	var turns sync.WaitGroup
	for _, p := range all {
		turns.Go(func() {
			for range 8 {
				l, err := p.Lock(t.Context(), "turn")
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				time.Sleep(time.Millisecond)
				count.Add(1)
				inside.Add(-1)
				l.Release()
			}
		})
	}
	turns.Wait()
	if n := count.Load(); n != 24 {
		t.Errorf("%d turns", n)
	}
}

// Who fell silent is taken over, and told apart from who gave up or died here.
func TestWhoIsTakenOver(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		last  int
		ends  func(format.Lock)
		taken bool
	}{
		"released":                        {0, format.Lock.Release, false},
		"died on this host":               {1, clvm.Die, false},
		"another host fell silent":        {0, clvm.Die, true},
		"one with a higher number did so": {2, clvm.Die, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, all := hosts(t, 3)
			l, err := all[c.last].Lock(t.Context(), "work")
			must(t, err)
			c.ends(l)
			next, err := all[1].TryLock(t.Context(), "work")
			must(t, err)
			defer next.Release()
			if next.TakenOver() != c.taken {
				t.Errorf("taken over: %t", next.TakenOver())
			}
			must(t, next.Check())
			if held, err := all[0].Held(t.Context(), "work"); err != nil || !held {
				t.Errorf("held: %t: %v", held, err)
			}
		})
	}
}

// A process that could not renew its lock has lost it for good, and changes nothing.
func TestASleeperHasLostItsLock(t *testing.T) {
	t.Parallel()
	_, all := hosts(t, 2)
	id := uuid.NewString()
	l, err := all[0].Lock(t.Context(), "work")
	must(t, err)
	must(t, all[0].Write(t.Context(), format.Image, id, []byte("before"), l.Check))
	clvm.Die(l) // it sleeps
	next, err := all[1].Lock(t.Context(), "work")
	must(t, err)
	defer next.Release()
	must(t, all[1].Write(t.Context(), format.Image, id, []byte("after"), next.Check))
	err = all[0].Write(t.Context(), format.Image, id, []byte("sleeper"), l.Check)
	if !errors.Is(err, failure.Temporary) || errors.Is(err, lock.ErrHeld) {
		t.Errorf("got %v", err)
	}
	if got, err := all[1].Read(t.Context(), format.Image, id); err != nil || string(got) != "after" {
		t.Errorf("%q: %v", got, err)
	}
}

// What a dead host left is judged once: then nobody waits for it.
func TestTheDeadAreBuried(t *testing.T) {
	t.Parallel()
	_, all := hosts(t, 3)
	l, err := all[2].Lock(t.Context(), "repository")
	must(t, err)
	clvm.Die(l)
	for _, p := range []format.Place{all[0], all[1], all[0]} {
		next, err := p.Lock(t.Context(), "repository")
		must(t, err)
		next.Release()
	}
	// Within less than a look at it takes.
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if held, err := all[1].Held(ctx, "repository"); err != nil || held {
		t.Errorf("held: %t: %v", held, err)
	}
	again, err := all[2].TryLock(t.Context(), "repository") // the host itself knows that its process died
	must(t, err)
	if again.TakenOver() {
		t.Error("it took it over from itself")
	}
	again.Release()
}

func TestANumberIsOneHosts(t *testing.T) {
	s, all := hosts(t, 1)
	l, err := all[0].Lock(t.Context(), "work")
	must(t, err)
	defer l.Release()
	other := s.open(s.on("h9", 1), shared)
	_, err = other.TryLock(t.Context(), "else")
	refused(t, err, failure.Precondition, "host number 1 is h1's", "[repository] host_id")
}
