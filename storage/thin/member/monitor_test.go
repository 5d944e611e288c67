// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
)

// watch runs a host's monitor until enough says so after a round.
func (h *node) watch(t *testing.T, enough func(round int, err error) bool) error {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	rounds := 0
	return h.Monitor(ctx, member.Watch{Quantum: 6, Every: time.Millisecond, Round: func(err error) {
		rounds++
		if enough(rounds, err) {
			stop()
		}
		if rounds > 1000 {
			t.Error("it never is enough")
			stop()
		}
	}})
}

// supplied is as it should be: free blocks above the low-water mark.
func (h *node) supplied() bool {
	s := h.status()
	return s.Pool != nil && s.Pool.Mode == devmapper.ReadWrite && s.Pool.Free() > h.LowWater
}

// A guest's write that waits for space goes on as the monitor gets some.
func TestMonitorSupplies(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	_, err := one.Free(t.Context(), blocks)
	w.must(err)
	one.LowWater = 4
	done := make(chan struct{})
	go func() {
		defer close(done)
		one.write("v1", 7)
	}()
	before := one.status().Owned
	w.must(one.watch(t, func(_ int, err error) bool { return err == nil && one.supplied() }))
	<-done
	one.reads("v1")
	if after := one.status().Owned; after != before+6 {
		t.Errorf("%d blocks, it had %d", after, before)
	}
	w.check()
	// It asks for nothing while there is enough.
	w.must(one.watch(t, func(round int, err error) bool { w.must(err); return round == 5 }))
	if after := one.status().Owned; after != before+6 {
		t.Errorf("%d blocks, it had %d", after, before+6)
	}
}

// A master that is away, and a cluster that is full, are waited out.
func TestMonitorWaits(t *testing.T) {
	w := stage(t)
	one, two := w.hosts[0], w.hosts[1]
	_, err := one.Free(t.Context(), blocks)
	w.must(err)
	one.LowWater, w.away = 2, true
	w.must(one.watch(t, func(round int, err error) bool {
		if w.away && !errors.Is(err, failure.Temporary) {
			t.Errorf("%v", err)
		}
		w.away = round < 3
		return one.supplied()
	}))
	w.check()

	_, err = one.Free(t.Context(), blocks)
	w.must(err)
	m, _ := w.readMap()
	two.request(m.Owned(layout.Owner{Kind: layout.Free}).Blocks())
	one.LowWater = one.status().Pool.Free()
	full := false
	w.must(one.watch(t, func(int, error) bool {
		if !full {
			full = true
			_, err := two.Free(t.Context(), 20)
			w.must(err)
		}
		return one.supplied()
	}))
	w.check()
}

// Blocks that were granted in spite of a parked device become free by a rebuild.
func TestMonitorRebuilds(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	_, err := one.Free(t.Context(), blocks)
	w.must(err)
	one.LowWater = 2
	w.must(one.watch(t, func(int, error) bool { return one.supplied() }))
	w.check()
	slack, err := one.Use(t.Context())
	if err != nil || slack.Free <= 2 {
		t.Errorf("%+v, %v", slack, err)
	}
}

// Guests that a killed verb left suspended are resumed.
func TestMonitorResumes(t *testing.T) {
	suspended := 0
	for at := 0; ; at++ {
		w := stage(t)
		one := w.hosts[0]
		one.life.left = at
		err := one.Rebuild(t.Context())
		killed := one.life.left == 0
		one.life.left = -1
		if !killed {
			w.must(err)
			break
		}
		if info, err := one.kernel.Info(t.Context(), device("v1")); err != nil || !info.Suspended {
			continue
		}
		suspended++
		w.must(one.watch(t, func(_ int, err error) bool { w.must(err); return true }))
		one.write("v1", 1)
		one.reads("v1")
		w.check()
	}
	if suspended == 0 {
		t.Error("no step leaves the guest suspended")
	}
}

// The monitor of a host that was held for fenced ends.
func TestMonitorOfFencedHost(t *testing.T) {
	w := stage(t)
	w.with(layout.MapName, func(dev group.Volume) error {
		m, stamp := w.readMap()
		m.Hosts[0].State, m.Hosts[0].Evidence = layout.Fenced, "its power is off"
		_, err := layout.CommitMap(dev, clusterID, stamp, stamp.Epoch, m)
		return err
	})
	w.is(w.hosts[0].watch(t, func(int, error) bool { return false }), failure.Conflict, "--rejoin host1")
}

// The monitor of a host whose pool does not run waits for it.
func TestMonitorOfStoppedPool(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	w.must(one.Stop(t.Context()))
	w.must(one.watch(t, func(round int, err error) bool {
		w.must(err)
		if round == 2 {
			one.start()
		}
		return round == 4
	}))
	one.reads("v1")
}

// A verb that gave up before the master's answer came, and is run again as it says,
// does what it does once.
func TestRepeatedAfterALateAnswer(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	n := 300
	next := func() uuid.UUID { n++; return id(n) }
	request := func() error { _, err := one.Request(t.Context(), 5); return err }
	one.request(12)
	for _, verb := range []struct {
		name string
		do   func() error
	}{
		{"request", request},
		{"free", func() error { _, err := one.Free(t.Context(), 3); return err }},
		{"create", func() error { return one.Create(t.Context(), next(), "late", blockSize) }},
		{"clone", func() error { return one.Clone(t.Context(), "late", next(), "copy") }},
		{"snapshot", func() error { return one.Snapshot(t.Context(), "v1", next(), "shot") }},
		{"clone of an attached one", func() error { return one.Clone(t.Context(), "v1", next(), "shot2") }},
		{"resize", func() error { return one.Resize(t.Context(), "late", 2*blockSize) }},
	} {
		w.mute = true
		if err := verb.do(); !errors.Is(err, failure.Temporary) {
			t.Fatalf("%s: %v", verb.name, err)
		}
		w.mute = false
		w.wrote["shot"], w.wrote["shot2"] = w.wrote["v1"], w.wrote["v1"]
		m, _ := w.readMap()
		if err := verb.do(); err != nil {
			t.Errorf("%s: %v", verb.name, err)
		}
		if after, _ := w.readMap(); !slices.Equal(m.Owners, after.Owners) || len(m.Volumes) != len(after.Volumes) {
			t.Errorf("%s: it was done twice", verb.name)
		}
		w.check()
	}
	before := one.status().Owned
	w.must(request())
	if after := one.status().Owned; after != before+5 {
		t.Errorf("%d blocks, it had %d: what was done before counts once", after, before)
	}
}

// What such a verb made of a volume is found by the same verb also when another one was
// the first to hear the answer, once, and by no verb that would have made another one.
func TestCopyRepeatedAfterALateAnswer(t *testing.T) {
	for _, verb := range []struct {
		name, of, other string
		do, not         func(one *node, of string, as uuid.UUID) error
	}{
		{
			"clone", "v2", "v1",
			func(one *node, of string, as uuid.UUID) error { return one.Clone(t.Context(), of, as, "late") },
			func(one *node, of string, as uuid.UUID) error { return one.Snapshot(t.Context(), of, as, "late") },
		},
		{
			"snapshot", "v1", "v2",
			func(one *node, of string, as uuid.UUID) error { return one.Snapshot(t.Context(), of, as, "late") },
			func(one *node, of string, as uuid.UUID) error { return one.Clone(t.Context(), "v2", as, "late") },
		},
	} {
		t.Run(verb.name, func(t *testing.T) {
			w := stage(t)
			one := w.hosts[0]
			w.mute = true
			w.is(verb.do(one, verb.of, id(900)), failure.Temporary, "")
			w.mute = false
			w.wrote["late"] = w.wrote[verb.of]
			w.must(one.Settle(t.Context()))
			_, err := one.Request(t.Context(), 3)
			w.must(err)
			if err := verb.not(one, verb.of, id(901)); err == nil {
				t.Error("another verb took it for its own")
			}
			u, err := one.Untold(t.Context())
			w.must(err)
			if m := u.Made(w.record(verb.of), "late", verb.name == "snapshot"); m == nil || m.ID != id(900) {
				t.Errorf("%+v", m)
			}
			if m := u.Made(w.record(verb.other), "late", false); m != nil {
				t.Errorf("of another volume: %+v", m)
			}
			w.must(verb.do(one, verb.of, id(902)))
			w.is(verb.do(one, verb.of, id(903)), failure.Conflict, "")
			w.check()
		})
	}
}

// A delete that gave up before the master's answer came is not told that there is no
// such volume when it is run again, whatever verb was first to hear the answer; one of
// a volume that never was, or that was deleted before, is.
func TestDeleteRepeatedAfterALateAnswer(t *testing.T) {
	for _, between := range []func(*node) error{
		func(*node) error { return nil },
		func(one *node) error { return one.Settle(t.Context()) },
		func(one *node) error { _, err := one.Request(t.Context(), 3); return err },
		func(one *node) error { return one.Create(t.Context(), id(901), "other", blockSize) },
		func(one *node) error { // which is refused
			_ = one.Resize(t.Context(), "v1", 512)
			return nil
		},
	} {
		w := stage(t)
		one := w.hosts[0]
		w.must(one.Create(t.Context(), id(900), "late", blockSize))
		w.mute = true
		for range 2 {
			w.is(one.Delete(t.Context(), "late"), failure.Temporary, "")
		}
		w.mute = false
		w.must(between(one))
		w.is(one.Delete(t.Context(), "never"), failure.NotFound, "thin status")
		w.must(one.Delete(t.Context(), "late"))
		w.is(one.Delete(t.Context(), "late"), failure.NotFound, "thin status")
		w.check()
	}
}
