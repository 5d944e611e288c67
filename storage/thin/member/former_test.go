// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"os"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/thin/member"
)

// A host that was cut off from the disk and held for fenced, and is let in again
// without a reboot, still has its former pool, to which blocks are free that are
// others' by now. Nothing goes on with it: it has to be stopped first, and what it
// wrote to the metadata after the host was let in counts for nothing.
func TestFormerPoolIsNotUsed(t *testing.T) {
	w := newWorld(t, t.TempDir(), 2)
	one, two := w.hosts[0], w.hosts[1]
	one.start()
	two.start()
	v := w.create(one)
	one.request(20)
	one.attach(v)
	one.write(v, 1)
	former := one.kernel
	one.recovered()
	two.request(4)
	two.attach(v)
	two.reads(v)

	w.is(one.Start(t.Context()), failure.Conflict, "thin stop")
	one.letIn()
	serves := map[string]func() error{
		"start":  func() error { return one.Start(t.Context()) },
		"attach": func() error { _, err := one.Attach(t.Context(), v, attachOptions); return err },
		"use":    func() error { _, err := one.Use(t.Context()); return err },
		"free":   func() error { _, err := one.Free(t.Context(), 1); return err },
		"round":  func() error { return one.Rebuild(t.Context()) },
	}
	for name, serve := range serves {
		if err := serve(); !errors.Is(err, failure.Conflict) {
			t.Errorf("%s: %v", name, err)
		} else {
			w.is(err, failure.Conflict, "thin stop")
		}
	}

	// A guest has the device still.
	dev, err := former.Open(t.Context(), device(v))
	w.must(err)
	w.is(one.Stop(t.Context()), failure.Conflict, "fuser")
	w.must(dev.Close())
	w.must(one.Stop(t.Context()))
	names, err := former.List(t.Context())
	w.must(err)
	if len(names) != 0 {
		t.Errorf("still there: %q", names)
	}
	if _, err := os.Lstat(one.Path(v)); err == nil {
		t.Error("the link to the volume is there still")
	}
	one.start()
	w.check()
	one.request(4)
	w.check()
	two.write(v, 2)
	two.detach(v)
	one.attach(v)
	one.reads(v)
	w.check()
}

// A host that was held for fenced can end its pool before it is let in again, as it is
// told to; the disk is not asked.
func TestStopOfHostThatIsNoMember(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1)
	one := w.hosts[0]
	one.start()
	v := w.create(one)
	one.request(8)
	one.attach(v)
	one.recovered()
	w.must(one.Stop(t.Context()))
	if names, err := one.kernel.List(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("%q, %v", names, err)
	}
	one.letIn()
	one.start()
	w.check()
}

// No volume's device is taken for one that the pool needs, whatever it is called.
func TestVolumesOfAnyName(t *testing.T) {
	w := newWorld(t, t.TempDir(), 1)
	one := w.hosts[0]
	one.start()
	one.request(30)
	for i, name := range []string{"reserved", "balloon", "pool", "metadata"} {
		w.must(one.Create(t.Context(), id(50+i), name, perVolume*blockSize))
		w.wrote[name] = map[uint64]uint32{}
		if _, err := one.Attach(t.Context(), name, member.AttachOptions{}); err != nil {
			t.Fatal(err)
		}
		one.write(name, 0)
	}
	if _, err := one.Free(t.Context(), 2); err != nil {
		t.Error(err)
	}
	one.request(4)
	for _, name := range []string{"reserved", "balloon", "pool", "metadata"} {
		one.reads(name)
	}
	w.check()
	w.must(one.Stop(t.Context()))
}
