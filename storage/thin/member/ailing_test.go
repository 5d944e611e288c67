// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/metadata"
)

// A pool that became read-only is told by the monitor, however much space it has left.
func TestMonitorTellsOfAReadOnlyPool(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	w.must(one.watch(t, func(round int, err error) bool {
		if round == 1 {
			w.must(err)
			one.kernel.BreakMetadata(device("pool+" + string(rune('A'+w.header(one).Active))))
			return false
		}
		w.is(err, failure.Precondition, "thin stop")
		return round == 3
	}))
}

// Metadata that fill up are written anew, packed, before the kernel makes the pool
// read-only; where that does not help it is told, and not tried again.
func TestMonitorMakesRoomForMetadata(t *testing.T) {
	for _, helps := range []bool{true, false} {
		w := stage(t)
		one := w.hosts[0]
		before := w.header(one)
		full := device("pool+" + string(rune('A'+before.Active)))
		one.tells = func(name string, p *devmapper.PoolStatus) {
			if name == full || !helps {
				p.MetadataUsed = p.MetadataTotal * 9 / 10
			}
		}
		w.must(one.watch(t, func(round int, err error) bool {
			switch {
			case helps || round == 1:
				w.must(err)
			default:
				w.is(err, failure.NoSpace, "extend")
			}
			return round == 3
		}))
		if now := w.header(one); now.Image != before.Image+1 || now.Active == before.Active {
			t.Errorf("image %d, it was %d", now.Image, before.Image)
		}
		one.tells = nil
		one.reads("v1")
		one.write("v1", 1)
		w.check()
	}
}

// Somebody who discards disk 0 makes every block of the cluster free on this host. Its
// pool withholds them again before it allocates one of another's.
func TestMonitorWithholdsWhatSomebodyDiscarded(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	info, err := one.kernel.Info(t.Context(), device("pool+"+string(rune('A'+w.header(one).Active))))
	w.must(err)
	_, err = one.kernel.Create(t.Context(), "oops", "", devmapper.Of(blocks*blockSize/512, devmapper.Thin{Pool: info.Device(), ID: 0}))
	w.must(err)
	dev, err := one.kernel.Open(t.Context(), "oops")
	w.must(err)
	w.must(dev.Discard(0, blocks*blockSize))
	w.must(dev.Close())
	w.must(one.kernel.Remove(t.Context(), "oops"))
	if s := one.status(); s.Pool.Free() <= s.Owned {
		t.Fatalf("%d blocks are free, %d its own", s.Pool.Free(), s.Owned)
	}
	w.must(one.watch(t, func(_ int, err error) bool { w.must(err); return true }))
	w.check()
	for v := range uint64(perVolume) {
		one.write("v1", v)
	}
	one.reads("v1")
	w.check()
}

// Metadata that are damaged get no pool, and the way out that is told leads out: only
// this host's volumes are concerned.
func TestStartOnDamagedMetadata(t *testing.T) {
	w := stage(t)
	one, two := w.hosts[0], w.hosts[1]
	one.boot()
	one.Windows = damaged{one.Windows}
	err := one.Start(t.Context())
	w.is(err, failure.Problems, "thin on-fenced host1")
	hint := failure.HintOf(err)
	for _, verb := range []string{"on-fenced", "recover --repair host1", "init-host --rejoin host1"} {
		before, after, found := strings.Cut(hint, verb)
		if !found {
			t.Errorf("hint %q lacks %q after %q", failure.HintOf(err), verb, before)
		}
		hint = after
	}
	if names, _ := one.kernel.List(t.Context()); len(names) > 1 {
		t.Errorf("%q", names)
	}
	two.reads("v3")
	two.attach("v2")
	two.reads("v2")
	two.write("v2", 1)
}

// A guest whose host has no space left waits for a master, however long there is none,
// and gets no error: that of the kernel comes after a minute.
func TestGuestWaitsForAMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := stage(t)
		one := w.hosts[0]
		_, err := one.Free(t.Context(), blocks)
		w.must(err)
		one.must(one.Rebuild(t.Context())) // so that what is granted is not parked
		w.away = true
		done := make(chan struct{})
		go func() {
			defer close(done)
			one.write("v1", 7)
		}()
		synctest.Wait()
		if mode := one.status().Pool.Mode; mode != devmapper.OutOfDataSpace {
			t.Fatalf("%v", mode)
		}
		time.Sleep(24 * time.Hour)
		select {
		case <-done:
			t.Error("it did not wait")
		default:
		}
		w.away = false
		one.request(4)
		<-done
		one.reads("v1")
		w.check()
	})
}

// tells is what a pool is said to be.
func (m mortal) Status(ctx context.Context, name string, noflush bool) (devmapper.Status, error) {
	s, err := m.Kernel.Status(ctx, name, noflush)
	if err == nil && s.Pool != nil && m.h.tells != nil {
		m.h.tells(name, s.Pool)
	}
	return s, err
}

// damaged are windows with bytes in which nobody finds metadata.
type damaged struct{ member.Windows }

func (damaged) Read(context.Context, string, uint64) (*metadata.Reader, func() error, error) {
	_, err := metadata.Open(layouttest.New("window", layout.MinWindow))
	return nil, nil, err
}
