// SPDX-License-Identifier: Apache-2.0

// Package grouptest is a shared volume group in memory, whose hosts lose power.
//
// The disks are layouttest's. CutAfter has the power go off after so many writes,
// flushes and changes of the group, wherever those fall; Boot brings it back, with
// what was not flushed arrived or not. So a test can stop a verb anywhere and see
// whether the next one goes on from there.
package grouptest

import (
	"context"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout/layouttest"
)

// Group is the group; it implements group.Group. It is for one goroutine.
type Group struct {
	Capacity uint64 // bytes of all volumes together
	disks    map[string]*layouttest.Disk
	left     int // steps until the power goes off; below 0 it stays on
}

// New makes an empty group, with the power on.
func New(capacity uint64) *Group {
	return &Group{Capacity: capacity, disks: map[string]*layouttest.Disk{}, left: -1}
}

// CutAfter has the power go off after so many steps.
func (g *Group) CutAfter(steps int) { g.left = steps }

// Off says whether the power went off.
func (g *Group) Off() bool { return g.left == 0 }

// Boot brings the power back. Of what was not flushed those sectors stay for which
// arrived says so.
func (g *Group) Boot(arrived func() bool) {
	g.left = -1
	names := make([]string, 0, len(g.disks))
	for name := range g.disks {
		names = append(names, name)
	}
	slices.Sort(names) // so that a seed means the same each time
	for _, name := range names {
		g.disks[name].Boot(arrived, 0)
	}
}

// Disk is the disk of a volume, nil if there is none.
func (g *Group) Disk(name string) *layouttest.Disk { return g.disks[name] }

// step fails once the power is off.
func (g *Group) step() error {
	switch {
	case g.left == 0:
		return layouttest.ErrPower
	case g.left > 0:
		g.left--
	}
	return nil
}

// volume is an open disk.
type volume struct {
	*layouttest.Disk
	g *Group
}

// WriteAt is io.WriterAt.
func (v volume) WriteAt(p []byte, off int64) (int, error) {
	if err := v.g.step(); err != nil {
		return 0, err
	}
	return v.Disk.WriteAt(p, off)
}

// ReadAt is io.ReaderAt.
func (v volume) ReadAt(p []byte, off int64) (int, error) {
	if v.g.Off() {
		return 0, layouttest.ErrPower
	}
	return v.Disk.ReadAt(p, off)
}

// Flush is layout.Device's.
func (v volume) Flush() error {
	if err := v.g.step(); err != nil {
		return err
	}
	return v.Disk.Flush()
}

// Close is group.Volume's.
func (v volume) Close() error { return nil }

// Open is group.Group's.
func (g *Group) Open(_ context.Context, name string, _ bool) (group.Volume, error) {
	d := g.disks[name]
	if d == nil {
		return nil, failure.Hint(failure.New(failure.NotFound, "%s: there is no such volume", name), "see `diskhook thin status`")
	}
	return volume{d, g}, nil
}

// Path is group.Group's.
func (g *Group) Path(name string) string { return name }

// Create is group.Group's.
func (g *Group) Create(ctx context.Context, name string, bytes uint64) error {
	if g.disks[name] != nil {
		return g.Extend(ctx, name, bytes)
	}
	if err := g.room(ctx, bytes); err != nil {
		return err
	}
	if err := g.step(); err != nil {
		return err
	}
	g.disks[name] = layouttest.New(name, pages(bytes))
	return nil
}

func pages(bytes uint64) int64 { return int64((bytes + 4095) &^ 4095) }

func (g *Group) room(ctx context.Context, bytes uint64) error {
	if free, _ := g.Free(ctx); free < bytes {
		return failure.Hint(failure.New(failure.NoSpace, "%d bytes are wanted, %d are free", bytes, free), "see `vgs`")
	}
	return nil
}

// Extend is group.Group's.
func (g *Group) Extend(ctx context.Context, name string, bytes uint64) error {
	d := g.disks[name]
	if d == nil {
		return failure.Hint(failure.New(failure.NotFound, "%s: there is no such volume", name), "see `diskhook thin status`")
	}
	more := pages(bytes) - d.Size()
	if more <= 0 {
		return nil
	}
	if err := g.room(ctx, uint64(more)); err != nil {
		return err
	}
	if err := g.step(); err != nil {
		return err
	}
	d.Grow(more)
	return nil
}

// Remove is group.Group's.
func (g *Group) Remove(_ context.Context, name string) error {
	if err := g.step(); err != nil {
		return err
	}
	delete(g.disks, name)
	return nil
}

// Deactivate is group.Group's.
func (g *Group) Deactivate(context.Context, string) error { return nil }

// List is group.Group's.
func (g *Group) List(context.Context) ([]group.LV, error) {
	var list []group.LV
	for name, d := range g.disks {
		list = append(list, group.LV{Name: name, Bytes: uint64(d.Size())})
	}
	slices.SortFunc(list, func(a, b group.LV) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Free is group.Group's.
func (g *Group) Free(context.Context) (uint64, error) {
	free := g.Capacity
	for _, d := range g.disks {
		free -= min(free, uint64(d.Size()))
	}
	return free, nil
}
