// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
)

// is wants an error of a kind that says what to do.
func (w *world) is(err error, kind *failure.Kind, hint string) {
	w.Helper()
	if !errors.Is(err, kind) || !strings.Contains(failure.HintOf(err), hint) {
		w.Fatalf("%v (hint %q), want %v with %q", err, failure.HintOf(err), kind, hint)
	}
}

// refuses has the kernel refuse one operation from the nth time on, once or always.
func (h *node) refuses(op, name string, nth int, always bool) {
	h.refuse = func(o, n string) error {
		if o != op || !strings.HasSuffix(n, name) {
			return nil
		}
		nth--
		if nth == 0 || nth < 0 && always {
			return &devmapper.Error{Op: op, Name: n, Errno: syscall.EINVAL}
		}
		return nil
	}
}

// A hand-over whose pool or table is refused is taken back: guests run on the former
// metadata, and the next try gets through.
func TestHandOverIsTakenBack(t *testing.T) {
	for _, fault := range []struct{ op, name string }{
		{"create", "+pool+A"}, {"load", "+v1"}, {"suspend", "+v1"}, {"message", "+pool+B"},
	} {
		t.Run(fault.op+fault.name, func(t *testing.T) {
			w := stage(t) // v2 came and went: B counts
			one := w.hosts[0]
			one.detach("v1")
			one.attach("v1")
			if w.header(one).Active != 1 {
				one.must(one.Rebuild(t.Context()))
			}
			before := w.header(one)
			one.refuses(fault.op, fault.name, 1, true)
			if fault.op == "message" {
				one.refuses(fault.op, fault.name, 3, false) // the reading after the suspension
			}
			_, err := one.Attach(t.Context(), "v2", attachOptions)
			if !errors.Is(err, syscall.EINVAL) {
				t.Fatal(err)
			}
			one.refuse = nil
			if now := w.header(one); now.Active != before.Active || now.Image != before.Image {
				t.Errorf("window %d image %d, before %d and %d", now.Active, now.Image, before.Active, before.Image)
			}
			one.write("v1", 0) // it would wait if it were suspended
			one.reads("v1")
			w.check()
			one.attach("v2")
			one.reads("v2")
			w.check()
		})
	}
}

func (h *node) must(err error) {
	h.w.Helper()
	h.w.must(err)
}

// Once a device was resumed on the new pool there is no way back: one that is not
// stays suspended until the next verb, and the others go on.
func TestDeviceThatDoesNotResume(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.attach("v2")
	image := w.header(one).Image
	one.refuses("resume", "+v2", 1, false)
	err := one.Rebuild(t.Context())
	w.is(err, failure.Temporary, "thin start")
	if w.header(one).Image != image+1 {
		t.Error("it was taken back")
	}
	one.write("v1", 0)
	info, err := one.kernel.Info(t.Context(), device("v2"))
	if err != nil || !info.Suspended {
		t.Errorf("%+v, %v", info, err)
	}
	one.refuse = nil
	one.start()
	one.reads("v2")
	one.write("v2", 1)
	w.check()
}

// A guest whose write waits for space does not keep a hand-over from happening, and
// goes on when there is some.
func TestHandOverOutOfSpace(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	_, err := one.Free(t.Context(), blocks)
	w.must(err)
	if status := one.status(); status.Pool.Free() > 0 {
		t.Fatalf("%v", status.Pool)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		one.write("v1", 7)
	}()
	for one.status().Pool.Mode != devmapper.OutOfDataSpace {
		time.Sleep(time.Millisecond)
	}
	one.must(one.Rebuild(t.Context()))
	one.request(4)
	<-done
	one.reads("v1")
	w.check()
}

func (h *node) status() member.Status {
	h.w.Helper()
	s, err := h.Status(h.w.Context())
	h.must(err)
	return s
}

// What a verb that was killed has asked for is made by the time that Settle returns,
// or it fails.
func TestSettle(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1)
	one := w.hosts[0]
	one.start()
	w.mute = true
	if err := one.Create(t.Context(), id(50), "late", 4*blockSize); !errors.Is(err, failure.Temporary) {
		t.Fatal(err)
	}
	if err := one.Settle(t.Context()); !errors.Is(err, failure.Temporary) {
		t.Errorf("while the master is away: %v", err)
	}
	w.mute = false
	if err := one.Settle(t.Context()); err != nil {
		t.Error(err)
	}
	if m, _ := w.readMap(); len(m.Volumes) != 1 || m.Volumes[0].UUID != id(50) {
		t.Errorf("%+v", m.Volumes)
	}
	w.check()
}

// A volume that somebody has attached since it was of a generation is not deleted.
func TestDeleteUnused(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1)
	one := w.hosts[0]
	one.start()
	one.request(8)
	old := w.create(one)
	one.attach(old)
	one.write(old, 1)
	one.detach(old)
	m, _ := w.readMap()
	v := m.Volumes[0]
	if err := one.DeleteUnused(t.Context(), v.UUID, v.Generation-1); !errors.Is(err, failure.Conflict) || failure.HintOf(err) == "" {
		t.Errorf("a volume that was written to since: %v", err)
	}
	for range 2 { // the second finds it gone
		w.must(one.DeleteUnused(t.Context(), v.UUID, v.Generation))
	}
	if m, _ := w.readMap(); len(m.Volumes) != 0 {
		t.Errorf("%+v", m.Volumes)
	}
}

// While the master is away guests, Start and Use go on; what needs it is refused,
// and what was asked for is done when it is back, once.
func TestMasterIsAway(t *testing.T) {
	for _, mute := range []bool{false, true} {
		w := stage(t)
		one := w.hosts[0]
		w.away, w.mute = !mute, mute
		_, err := one.Request(t.Context(), 4)
		w.is(err, failure.Temporary, "")
		if got := one.status().Pending; got != "grant" {
			t.Errorf("pending: %q", got)
		}
		m, _ := w.readMap()
		owned := m.Owned(layout.Owner{Kind: layout.OfHost, Number: w.number(m, one)}).Blocks()
		_, err = one.Attach(t.Context(), "v2", attachOptions)
		w.is(err, failure.Temporary, "")
		w.is(one.Rebuild(t.Context()), failure.Temporary, "")
		w.is(one.Detach(t.Context(), "v1"), failure.Temporary, "")
		one.must(one.Start(t.Context()))
		one.write("v1", 1)
		one.boot()
		one.must(one.Start(t.Context()))
		one.reads("v1")
		w.check()
		w.away, w.mute = false, false
		one.start()
		if got := one.status(); got.Pending != "" {
			t.Errorf("pending: %q", got.Pending)
		}
		want := owned
		if !mute { // it was not granted then
			want += 4
		}
		if got := one.status().Owned; got != want {
			t.Errorf("%d blocks, want %d", got, want)
		}
		w.check()
	}
}

// A volume that is in use stays where it is, in every respect.
func TestInUse(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	guest := one.guest("v1")
	before := w.record("v1")
	w.is(one.Detach(t.Context(), "v1"), failure.Conflict, "fuser")
	w.is(one.Stop(t.Context()), failure.Conflict, "fuser")
	if after := w.record("v1"); after.State != before.State || after.Generation != before.Generation {
		t.Errorf("%+v", after)
	}
	w.must(guest.Close())
	one.write("v1", 1)
	w.check()
	one.must(one.Stop(t.Context()))
	if names, _ := one.kernel.List(t.Context()); len(names) != 0 {
		t.Errorf("%q", names)
	}
	_, err := one.Use(t.Context())
	w.is(err, failure.Precondition, "thin start")
	w.must(one.Rebuild(t.Context())) // which needs no pool
	w.check()
	one.start()
	one.reads("v1")
}

// What only looks at a volume, as udev does and LVM, does not keep it here.
func TestLookedAt(t *testing.T) {
	for what, gives := range map[string]func(*node, context.Context) error{
		"detach": func(one *node, ctx context.Context) error { return one.Detach(ctx, "v1") },
		"stop":   func(one *node, ctx context.Context) error { return one.Stop(ctx) },
		"claim": func(one *node, ctx context.Context) error {
			_, err := one.Preview(ctx, "v1", "a domain")
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := stage(t)
				one := w.hosts[0]
				one.Closing = 10 * time.Second
				udev := one.guest("v1")
				time.AfterFunc(7*time.Second, func() { _ = udev.Close() })
				one.must(gives(one, t.Context()))
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := stage(t)
		one := w.hosts[0]
		one.Closing = 10 * time.Second
		guest := one.guest("v1")
		began := time.Now()
		w.is(one.Detach(t.Context(), "v1"), failure.Conflict, "fuser")
		if took := time.Since(began).Round(time.Second); took != one.Closing {
			t.Errorf("refused after %v", took)
		}
		w.must(guest.Close())
		w.check()
	})
}

// A volume of another host, and one that is not there.
func TestNotHere(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	_, err := one.Attach(t.Context(), "v3", attachOptions)
	w.is(err, failure.Conflict, "thin detach")
	w.is(one.Detach(t.Context(), "v3"), failure.Conflict, "on host2")
	w.is(one.Detach(t.Context(), "v9"), failure.NotFound, "thin create v9")
	w.is(one.Snapshot(t.Context(), "v2", id(77), "s"), failure.Precondition, "thin clone v2 s")
	w.must(one.Detach(t.Context(), "v2")) // it is offline
	w.check()
}

// Metadata that fail make the pool read-only: a grant is not taken for applied, and
// a stop and a start put it right.
func TestMetadataNeedCheck(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	window := w.header(one).Active
	one.kernel.BreakMetadata(device("pool+" + string(rune('A'+window))))
	_, err := one.Use(t.Context())
	w.is(err, failure.Precondition, "thin stop")
	one.must(one.Stop(t.Context()))
	one.start()
	if w.header(one).Active == window {
		t.Error("it runs on the metadata that need a check")
	}
	one.reads("v1")
	one.write("v1", 6)
	one.request(3)
	w.check()
}

// Metadata from which somebody else's blocks could be allocated get no pool.
func TestStartRefusesForeignBlocks(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	one.boot()
	header := w.header(one)
	k, name := w.window(one, header.Windows[header.Active])
	image, err := k.ReadMetadata(name, 0)
	w.must(err)
	delete(image.Devices[0].Mappings, 90)
	w.must(k.WriteMetadata(name, image))
	w.is(one.Start(t.Context()), failure.Problems, "thin check")
	if names, _ := one.kernel.List(t.Context()); len(names) > 1 {
		t.Errorf("%q", names)
	}
}

// A mapping that has no place beside the one that counts has the master make room.
func TestMappingNeedsRoom(t *testing.T) {
	w := stage(t)
	name := layout.Thin.Name(w.record("v1").UUID)
	m := w.mapping(w.record("v1"))
	w.must(w.g.Remove(t.Context(), name))
	const one = 12 << 10 // two headers, and the contents of one copy
	w.must(w.g.Create(t.Context(), name, one))
	w.with(name, func(dev group.Volume) error {
		return layout.CreateMapping(dev, clusterID, w.record("v1").UUID, 1, m)
	})
	w.hosts[0].detach("v1")
	if size := w.g.Disk(name).Size(); size <= one {
		t.Errorf("%d bytes", size)
	}
	w.check()
	w.hosts[1].attach("v1")
	w.hosts[1].reads("v1")
}

// Metadata that a window has no room for, with what a kernel needs besides, go to
// where UUID.host was extended; windows need not be of one length.
func TestMetadataNeedRoom(t *testing.T) {
	w := newWorldOf(t, t.TempDir(), 1, 30000)
	one := w.hosts[0]
	one.start()
	one.request(8)
	v := w.create(one)
	for range 3 {
		before := w.header(one)
		one.attach(v)
		one.write(v, 2)
		one.detach(v)
		header := w.header(one)
		if window := header.Windows[header.Active]; window.Length <= layout.MinWindow || before.Active == header.Active {
			t.Errorf("%+v", header)
		}
		w.check()
	}
	if size := w.g.Disk(layout.Host.Name(id(1))).Size(); size <= 3<<20 {
		t.Errorf("%d bytes", size)
	}
	one.boot()
	one.start()
	w.check()
}

// A host that was held for fenced starts nothing and changes nothing.
func TestFencedHost(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	w.with(layout.MapName, func(dev group.Volume) error {
		m, stamp := w.readMap()
		m.Hosts[0].State, m.Hosts[0].Evidence = layout.Fenced, "its power is off"
		_, err := layout.CommitMap(dev, clusterID, stamp, stamp.Epoch, m)
		return err
	})
	one.boot()
	w.is(one.Start(t.Context()), failure.Conflict, "thin init-host --rejoin host1")
	_, err := one.Attach(t.Context(), "v2", attachOptions)
	w.is(err, failure.Conflict, "thin init-host --rejoin host1")
	if names, _ := one.kernel.List(t.Context()); len(names) != 0 {
		t.Errorf("%q", names)
	}
}

// A cluster grows when every host withholds what is new, and not before; a hand-over
// that is taken back leaves the pool with what it knew.
func TestGrow(t *testing.T) {
	w := stage(t)
	one, two := w.hosts[0], w.hosts[1]
	const more = 2 * blocks * blockSize
	_, err := w.chief.Grow(t.Context(), more)
	w.is(err, failure.Precondition, "thin rebuild` on host1, host2")
	one.refuses("create", "+pool+"+string("BA"[w.header(one).Active]), 1, false)
	if err := one.Rebuild(t.Context()); err == nil || w.header(one).Blocks != blocks {
		t.Errorf("%v, %d blocks", err, w.header(one).Blocks)
	}
	one.refuse = nil
	w.check()
	one.must(one.Rebuild(t.Context()))
	one.attach("v2") // with a pool that is ahead of the map
	one.reads("v2")
	_, err = w.chief.Grow(t.Context(), more)
	w.is(err, failure.Precondition, "thin rebuild` on host2")
	two.must(two.Rebuild(t.Context()))
	_, err = w.chief.Grow(t.Context(), more)
	w.must(err)
	w.blocks = 2 * blocks
	w.check()
	one.request(blocks)
	for v := range uint64(perVolume) {
		one.write("v1", v)
	}
	w.check()
	one.boot()
	one.start()
	one.reads("v1")
	w.check()
}

// The master may extend the volume of the map while a verb of a host has it open: what
// lies beyond the length that it knows is read all the same, and not taken for damage.
func TestMapIsExtendedMeanwhile(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	size := uint64(w.g.Disk(layout.MapName).Size())
	w.asked = func() {
		size += 1 << 20
		w.must(w.g.Extend(t.Context(), layout.MapName, size))
	}
	for range 2 {
		one.attach("v2")
		one.write("v2", 1)
		one.detach("v2")
	}
	w.asked = nil
	one.attach("v2")
	one.reads("v2")
	w.check()
}
