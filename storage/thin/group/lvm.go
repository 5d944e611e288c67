// SPDX-License-Identifier: Apache-2.0

package group

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/blockdev"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/layout"
)

// fresh is the tag of a volume that was made and may not have been emptied yet.
const fresh = "diskhook_thin_new"

// volumes is a volume group of LVM.
type volumes struct {
	lvm     *lvm.LVM
	vg      string
	dev     string // where device nodes are
	cluster uuid.UUID
	tag     string
	may     func() error // nil: whoever asks may change the group
	// wait waits for a device node; tests have files in their place.
	wait func(ctx context.Context, path string) (int64, error)
}

// LVM is the volume group called vg, of a cluster; dev is where device nodes are,
// as host.Layout says.
func LVM(l *lvm.LVM, vg, dev string, cluster uuid.UUID) Group {
	return &volumes{lvm: l, vg: vg, dev: dev, cluster: cluster, tag: "diskhook_thin=" + cluster.String(), wait: blockdev.WaitNode}
}

func (g *volumes) object(name string) string { return "lv " + g.vg + "/" + name }

// Path is Group's. LVM makes the node /dev/VG/LV when the volume becomes active.
func (g *volumes) Path(name string) string { return filepath.Join(g.dev, g.vg, name) }

// guarded is what Guarded makes of it.
func (g *volumes) guarded(may func() error) Group {
	c := *g
	c.may = may
	return &c
}

// allowed is asked right before each command that writes LVM's metadata.
func (g *volumes) allowed() error {
	if g.may == nil {
		return nil
	}
	return g.may()
}

// find asks the group about one volume.
func (g *volumes) find(ctx context.Context, name string) (lvm.LV, bool, error) {
	if err := check(name); err != nil {
		return lvm.LV{}, false, err
	}
	report, err := g.lvm.Report(ctx, g.vg)
	if err == nil {
		err = report.VG.Health()
	}
	if err != nil {
		return lvm.LV{}, false, err
	}
	lv, ok := report.LV(name)
	return lv, ok, lv.Health()
}

// tries bounds how often a device is made that somebody else on this host, who is
// done with it, takes away at the same time.
const tries = 3

// Open is Group's.
func (g *volumes) Open(ctx context.Context, name string, write bool) (Volume, error) {
	if name == layout.MapName && !write {
		if v := g.seen(); v != nil {
			return v, nil
		}
	}
	lv, ok, err := g.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if !ok || slices.Contains(lv.Tags, fresh) { // what is read there is its extents' earlier owner's
		return nil, absent(g.object(name))
	}
	active := lv.Active != nil && *lv.Active
	for try := 1; ; try++ {
		v, err := g.open(ctx, lv, active, write)
		if err == nil || try == tries || !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
		active = false
	}
}

// seen is the map, where it is active here and can be read: it says itself that it is
// the cluster's, and how long it is, and is never removed. So nobody has LVM read
// the metadata of the whole group each time that a host or the master looks whether
// anything is new, which is all the time. What is to be written to, LVM is asked for.
func (g *volumes) seen() *layout.Volume {
	v, err := layout.Open(g.Path(layout.MapName), false)
	if err != nil {
		return nil
	}
	if _, _, err := layout.ReadMap(v, g.cluster); err != nil {
		_ = v.Close() // it was only read
		return nil
	}
	return v
}

func (g *volumes) open(ctx context.Context, lv lvm.LV, active, write bool) (Volume, error) {
	if !active {
		if err := g.activate(ctx, lv.Name); err != nil {
			return nil, err
		}
	}
	v, err := g.node(ctx, lv.Name, write)
	if err != nil || v.Size() >= lv.Size {
		return v, err
	}
	// The master extended it after it had become active here.
	if err := errors.Join(v.Close(), g.lvm.Refresh(ctx, g.vg, lv.Name)); err != nil {
		return nil, err
	}
	return g.node(ctx, lv.Name, write)
}

// activate makes the device.
func (g *volumes) activate(ctx context.Context, name string) error {
	if _, suffix, _ := layout.ParseName(name); suffix == layout.Raw || suffix == layout.VHD {
		return g.lvm.ActivateExclusive(ctx, g.vg, name)
	}
	return g.lvm.ActivateShared(ctx, g.vg, name)
}

// node opens the device node, which udev may be about to make.
func (g *volumes) node(ctx context.Context, name string, write bool) (*layout.Volume, error) {
	if _, err := g.wait(ctx, g.Path(name)); err != nil {
		return nil, err
	}
	return layout.Open(g.Path(name), write)
}

// Create is Group's. A tag of its own tells a volume that was made, but not emptied
// when its maker died, from one that has been in use since.
func (g *volumes) Create(ctx context.Context, name string, bytes uint64) error {
	lv, there, err := g.find(ctx, name)
	switch {
	case err != nil:
		return err
	case there && !slices.Contains(lv.Tags, g.tag):
		err := failure.New(failure.Conflict, "%s: it is there and is not this cluster's", g.object(name))
		return failure.Hint(err, "look at it with `lvs -o +lv_tags %s` and `blkid -p %s`: rename it with `lvrename`, or, if it is meant for the cluster, give it to it with `lvchange --addtag %s %s/%s`",
			g.vg, g.Path(name), g.tag, g.vg, name)
	case there && !slices.Contains(lv.Tags, fresh):
		return g.Extend(ctx, name, bytes)
	case !there:
		if err := g.allowed(); err != nil {
			return err
		}
		o := lvm.CreateOptions{VG: g.vg, Name: name, Size: sectors(bytes), Tags: []string{g.tag, fresh}, SkipActivation: true}
		if err := g.lvm.Create(ctx, o); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("thin.group.made"); err != nil {
		return err
	}
	return g.empty(ctx, name)
}

// empty makes a new volume readable as one that nothing was written to. It is no
// longer active after that: in a group of lvmlockd another host may want it.
func (g *volumes) empty(ctx context.Context, name string) error {
	if err := g.activate(ctx, name); err != nil {
		return err
	}
	v, err := g.node(ctx, name, true)
	if err != nil {
		return err
	}
	if err = g.allowed(); err == nil {
		err = layout.Wipe(v)
	}
	if err := errors.Join(err, v.Close()); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.group.emptied"); err != nil {
		return err
	}
	if err := g.lvm.Deactivate(ctx, g.vg, name); err != nil {
		return err
	}
	if err := g.allowed(); err != nil {
		return err
	}
	return g.lvm.ChangeTags(ctx, g.vg, []string{name}, nil, []string{fresh})
}

// sectors rounds up to what LVM takes for a size.
func sectors(bytes uint64) int64 { return int64((bytes + 511) &^ 511) }

// Extend is Group's.
func (g *volumes) Extend(ctx context.Context, name string, bytes uint64) error {
	lv, there, err := g.find(ctx, name)
	if err != nil {
		return err
	}
	if !there {
		return absent(g.object(name))
	}
	if uint64(lv.Size) >= bytes {
		return nil
	}
	if err := g.allowed(); err != nil {
		return err
	}
	return g.held(g.lvm.Extend(ctx, g.vg, name, sectors(bytes)),
		"a group of lvmlockd(8) extends nothing that a host has active: stop the cluster on each (`diskhook thin stop`, and the services diskhook-thin-*), "+
			"run `lvchange -an %[1]s/%[2]s` on each and `lvextend -L %[3]db %[1]s/%[2]s` on one of them, then start them again", g.vg, name, sectors(bytes))
}

// held says what to do where lvmlockd refuses to change a volume because of who has it
// active. In a group of another kind nobody does.
func (g *volumes) held(err error, hint string, args ...any) error {
	if errors.Is(err, lvm.ErrElsewhere) || errors.Is(err, lvm.ErrOtherWay) {
		return failure.Hint(err, hint, args...)
	}
	return err
}

// Remove is Group's.
func (g *volumes) Remove(ctx context.Context, name string) error {
	lv, there, err := g.find(ctx, name)
	switch {
	case err != nil || !there:
		return err
	case !slices.Contains(lv.Tags, g.tag):
		err := failure.New(failure.Conflict, "%s: it is not this cluster's and stays", g.object(name))
		return failure.Hint(err, "look at it with `lvs -o +lv_tags %s`, and rename it with `lvrename` or remove it with `lvremove`", g.vg)
	}
	if err := g.allowed(); err != nil {
		return err
	}
	if err := g.lvm.Remove(ctx, g.vg, name); !errors.Is(err, lvm.ErrNoLV) {
		return g.held(err, "run `lvchange -an %[1]s/%[2]s` on every host that is up, then this again; the lease of one that is off ends by itself (`lvmlockctl -i`)", g.vg, name)
	}
	return nil
}

// Deactivate is Group's.
func (g *volumes) Deactivate(ctx context.Context, name string) error {
	if err := check(name); err != nil {
		return err
	}
	if err := g.lvm.Deactivate(ctx, g.vg, name); !errors.Is(err, lvm.ErrNoLV) {
		return err
	}
	return nil
}

// List is Group's.
func (g *volumes) List(ctx context.Context) ([]LV, error) {
	report, err := g.lvm.Report(ctx, g.vg)
	if err != nil {
		return nil, err
	}
	var list []LV
	for _, lv := range report.LVs {
		if check(lv.Name) == nil {
			list = append(list, LV{Name: lv.Name, Bytes: uint64(lv.Size), Active: lv.Active, Foreign: !slices.Contains(lv.Tags, g.tag)})
		}
	}
	return list, nil
}

// Free is Group's.
func (g *volumes) Free(ctx context.Context) (uint64, error) {
	report, err := g.lvm.Report(ctx, g.vg)
	if err != nil {
		return 0, err
	}
	return uint64(report.VG.Free), nil
}
