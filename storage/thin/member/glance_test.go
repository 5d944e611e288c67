// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
)

// glimpsed is the group of a host whose header and map are active, as they were when it
// was made; what is asked of LVM is counted, and answered from the disks.
type glimpsed struct {
	group.Group        // what LVM knows
	active      string // a directory of what is active
	asked       int
}

func (g *glimpsed) Path(name string) string { return filepath.Join(g.active, name) }

func (g *glimpsed) Open(ctx context.Context, name string, write bool) (group.Volume, error) {
	if name == layout.Host.Name(id(1)) {
		g.asked++
	}
	return g.Group.Open(ctx, name, write)
}

func (w *world) glimpsed(h *node, names ...string) *glimpsed {
	g := &glimpsed{Group: h.Group, active: filepath.Join(w.dir, "active")}
	w.must(os.MkdirAll(g.active, 0o700))
	for _, name := range names {
		disk := w.g.Disk(name)
		b := make([]byte, disk.Size())
		_, err := disk.ReadAt(b, 0)
		w.must(err)
		w.must(os.WriteFile(g.Path(name), b, 0o600))
	}
	return g
}

// Who only looks at a host asks LVM nothing while what is active is of the membership
// that the map has, and is right all the same when it is not.
func TestLookingAsksLVMNothing(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	own := layout.Host.Name(id(1))
	looks := func(g *glimpsed, asks bool) member.Status {
		t.Helper()
		one.Group, g.asked = g, 0
		s, err := one.Status(t.Context())
		w.must(err)
		_, err = one.Copies(t.Context())
		w.must(err)
		_, err = one.Untold(t.Context())
		w.must(err)
		if asks != (g.asked > 0) {
			t.Errorf("LVM was asked %d times", g.asked)
		}
		return s
	}
	lvm := one.Group
	g := w.glimpsed(one, own)
	if s := looks(g, false); s.Host != "host1" || s.State != layout.Member || len(s.Volumes) == 0 {
		t.Errorf("%+v", s)
	}
	// An extension by the master changes nothing of the header.
	w.must(w.g.Extend(t.Context(), own, uint64(w.g.Disk(own).Size())+1<<20))
	looks(g, false)
	w.must(os.Truncate(g.Path(own), 100)) // somebody else has those extents by now
	looks(g, true)
	w.must(os.Remove(g.Path(own)))
	looks(g, true)

	// The volume was removed, and made again for a new membership.
	old := w.glimpsed(one, own)
	one.Group = lvm
	one.fence()
	old.Group = one.Group
	if s := looks(old, true); s.State != layout.Member || s.Number == 1 {
		t.Errorf("%+v", s)
	}
}

// A monitor that has nothing to do runs no command.
func TestIdleMonitorRunsNoCommand(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	run := &commandtest.Runner{T: t}
	dev := filepath.Join(w.dir, "dev")
	w.must(os.MkdirAll(dev, 0o700))
	idle := group.LVM(&lvm.LVM{Run: run}, "vg", dev, clusterID)
	w.must(one.watch(t, func(round int, err error) bool {
		w.must(err)
		if round == 1 { // it has used what was granted
			g := w.glimpsed(one, layout.Host.Name(id(1)), layout.MapName)
			w.must(os.Symlink(g.active, filepath.Join(dev, "vg")))
			one.Group = idle
		}
		return round == 4
	}))
	if lines := run.Lines(); len(lines) != 0 {
		t.Errorf("%q", lines)
	}
}
