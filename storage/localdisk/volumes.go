// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lvm"
)

// volumes is the backends lvm and lvmthin: logical volumes of one volume
// group, linear or in its thin pool. Both share the group's one report.
type volumes struct {
	lvm         *lvm.LVM
	dev         string // where the group's directory of nodes is
	vg, pool    string // pool "" is linear
	reserve     int64
	poolReserve int // percent
}

const thinPool = "thin-pool" // lvm.LV.Segtype

func newVolumes(s *Service, pool string) backend {
	c := s.Config
	return &volumes{
		lvm: &lvm.LVM{Run: s.Run, Devices: c.LVM.Devices, Timeout: time.Duration(c.LVM.Timeout)},
		dev: s.Layout.Dev(), vg: c.Local.VG, pool: pool,
		reserve: int64(c.Local.Reserve), poolReserve: c.Local.PoolReserve,
	}
}

func (b *volumes) home() string { return b.vg }

func (b *volumes) target(d Disk) string { return b.node(d.CopyName()) }

func (b *volumes) node(name string) string { return filepath.Join(b.dev, b.vg, name) }

func (b *volumes) find(ctx context.Context) (map[string]Copy, error) {
	copies, _, err := b.survey(ctx)
	return copies, err
}

func (b *volumes) survey(ctx context.Context) (map[string]Copy, room, error) {
	report, err := b.report(ctx)
	if err != nil {
		return nil, nil, err
	}
	copies := map[string]Copy{}
	for _, lv := range report.LVs {
		copies[lv.Name] = b.describe(report, lv)
	}
	return copies, func(sizes []int64) error { return b.roomIn(report, sizes) }, nil
}

func (b *volumes) report(ctx context.Context) (lvm.Report, error) {
	report, err := b.lvm.Report(ctx, b.vg)
	if errors.Is(err, lvm.ErrNoVG) {
		err = failure.Hint(err, "see `vgs`; create it with `vgcreate %s DEVICE`, or set [local] vg in diskhook.toml", b.vg)
	} else if failure.HintOf(err) == "" {
		err = failure.Hint(err, "see `vgs %s` and `journalctl -k`, then try again", b.vg)
	}
	return report, err
}

func (b *volumes) describe(report lvm.Report, lv lvm.LV) Copy {
	pool, _ := report.LV(lv.Pool)
	c := Copy{
		State: Ready, UUID: lv.UUID, Name: lv.Name, Format: imagecheck.Raw, Home: lv.VG, HomeID: lv.VGUUID,
		Path: b.node(lv.Name), Size: lv.Size, Open: lv.Open, Tags: lv.Tags,
		Active: lv.Active == nil || *lv.Active, Pool: lv.Pool, Zeroes: pool.Segtype == thinPool && pool.Attr.Zeroes(), Writable: lv.Attr.Writable(),
	}
	if c.has(tagUpdating) {
		c.State = Updating
	}
	if c.has(tagOverlay) {
		c.Format = imagecheck.QCOW2
	}
	if lv.Active != nil && !*lv.Active {
		c.Open = new(bool) // what has no node cannot be open
	}
	if validTemplate(lv.Origin) {
		c.Origin = lv.Origin
	}
	if c.Format == imagecheck.QCOW2 && c.Origin == "" {
		c.Origin = lowest(c) // to LVM the one has nothing to do with the other
	}
	if err := lv.Health(); err != nil {
		c.Sick = failure.OneLine(err.Error())
	}
	return c
}

// room asks the volume group, or the thin pool, where a virtual size may
// exceed what is there: only the pool's watermark counts, since the copy may
// turn out to be mostly holes, and a pool that fills up fails the copy.
func (b *volumes) room(ctx context.Context, sizes []int64) error {
	report, err := b.report(ctx)
	if err != nil {
		return err
	}
	return b.roomIn(report, sizes)
}

func (b *volumes) roomIn(report lvm.Report, sizes []int64) error {
	if b.pool == "" {
		return b.groupRoom(report.VG, sizes)
	}
	pool, err := b.findPool(report)
	if err != nil {
		return err
	}
	return b.poolRoom(pool)
}

// lends holds for a thin pool: a volume takes of it what is written to it.
func (b *volumes) lends() bool { return b.pool != "" }

func (b *volumes) groupRoom(vg lvm.VG, sizes []int64) error {
	rounded := make([]int64, len(sizes))
	for i, n := range sizes {
		rounded[i] = vg.RoundUp(n)
	}
	return fits("vg "+b.vg, vg.Free-b.reserve, rounded, b.moreRoom())
}

// poolRoom is the room of the thin pool: it is lent more than once, so what
// counts is how full it is.
func (b *volumes) poolRoom(pool lvm.LV) error {
	if full := max(pool.DataPercent, pool.MetadataPercent); full > float64(100-b.poolReserve) {
		err := failure.New(failure.NoSpace, "lv %s/%s: thin pool: data is %.1f %% full, metadata %.1f %%; %d %% are kept free",
			b.vg, b.pool, pool.DataPercent, pool.MetadataPercent, b.poolReserve)
		if pool.MetadataPercent >= pool.DataPercent {
			return failure.Hint(err, "extend it with `lvextend --poolmetadatasize +SIZE %s/%s`, or lower [local] pool_reserve", b.vg, b.pool)
		}
		return failure.Hint(err, "%s", b.moreRoom())
	}
	return nil
}

func (b *volumes) moreRoom() string {
	if b.pool == "" {
		return fmt.Sprintf("extend it with `vgextend %s DEVICE`, or lower [local] reserve (%d bytes now)", b.vg, b.reserve)
	}
	return fmt.Sprintf("extend it with `lvextend -L +SIZE %s/%s`, or lower [local] pool_reserve (%d %% now)", b.vg, b.pool, b.poolReserve)
}

func (b *volumes) findPool(report lvm.Report) (lvm.LV, error) {
	pool, ok := report.LV(b.pool)
	if ok && pool.Segtype == thinPool {
		return pool, nil
	}
	err := failure.New(failure.Precondition, "lv %s/%s: no such thin pool", b.vg, b.pool)
	return lvm.LV{}, failure.Hint(err, "create it with `lvcreate --type thin-pool -L SIZE -n %s %s`, or set [local] pool", b.pool, b.vg)
}

// readsZero holds for a new thin volume of a pool that zeroes its blocks
// before it hands them out, and never for a linear one.
func (b *volumes) readsZero(ctx context.Context) (bool, error) {
	if b.pool == "" {
		return false, nil
	}
	report, err := b.report(ctx)
	if err != nil {
		return false, err
	}
	pool, err := b.findPool(report)
	return err == nil && pool.Attr.Zeroes(), err
}

// A volume has its tags from lvcreate itself.
func (b *volumes) announce(Disk) error { return nil }
func (b *volumes) withdraw(Disk)       {}

func (b *volumes) create(ctx context.Context, d Disk, size int64) (Copy, error) {
	if err := b.lvm.Create(ctx, b.createOptions(d, size)); err != nil {
		return Copy{}, err
	}
	return b.made(ctx, d.CopyName())
}

// made looks at a volume that was just made, and waits for its node.
func (b *volumes) made(ctx context.Context, name string) (Copy, error) {
	report, err := b.report(ctx)
	if err != nil {
		return Copy{}, err
	}
	lv, ok := report.LV(name)
	if !ok {
		return Copy{}, failure.New(failure.Conflict, "lv %s/%s: vanished after it was created", b.vg, name)
	}
	c := b.describe(report, lv)
	return c, c.awaitNode(ctx)
}

// createOptions: sizes are rounded to sectors, for which lvcreate asks, and by
// LVM to extents. Copies skip activation, so that nothing but a fulfil makes
// their nodes; oVirt's hook could not use such a volume, so there they do not.
func (b *volumes) createOptions(d Disk, size int64) lvm.CreateOptions {
	return lvm.CreateOptions{
		VG: b.vg, Name: d.CopyName(), Size: sectors(size), Pool: b.pool,
		Tags: creationTags(d), SkipActivation: !d.OVirt(), Activate: true,
	}
}

// sectors is size in bytes, rounded up to what LVM takes.
func sectors(size int64) int64 { return (size + 511) &^ 511 }

func (b *volumes) finish(ctx context.Context, d Disk, c Copy, machine string) error {
	return b.lvm.ChangeTags(ctx, b.vg, []string{c.Name}, ourTags(d, machine), []string{tagUpdating})
}

func (b *volumes) claim(ctx context.Context, d Disk, c Copy, machine string) error {
	return b.lvm.ChangeTags(ctx, b.vg, []string{c.Name}, ourTags(d, machine), nil)
}

func (b *volumes) activate(ctx context.Context, copies []Copy) error {
	return b.lvm.Activate(ctx, b.vg, names(copies)...)
}

func (b *volumes) deactivate(ctx context.Context, copies []Copy) error {
	return b.lvm.Deactivate(ctx, b.vg, names(copies)...)
}

func names(copies []Copy) []string {
	all := make([]string, len(copies))
	for i, c := range copies {
		all[i] = c.Name
	}
	return all
}

func (b *volumes) remove(ctx context.Context, c Copy) error {
	if !c.closed() {
		return inUse(c)
	}
	return b.lvm.Remove(ctx, b.vg, c.Name)
}

func (b *volumes) extend(ctx context.Context, c Copy, size int64) (Copy, error) {
	if size > c.Size {
		if err := b.lvm.Extend(ctx, b.vg, c.Name, size); err != nil {
			return c, err
		}
	}
	report, err := b.report(ctx)
	if err != nil {
		return c, err
	}
	lv, ok := report.LV(c.Name)
	if !ok || lv.UUID != c.UUID {
		return c, failure.New(failure.Conflict, "%s: vanished", c)
	}
	return b.describe(report, lv), nil
}

// explain runs the backend's own methods against a runner that only writes
// down, so that a dry run shows the very commands.
func (b *volumes) explain(ctx context.Context, a Action, d Disk, c Copy, size int64, clone *clonePlan) []string {
	lines := b.recorded(func(shown *volumes) {
		switch a {
		case Replace:
			_ = shown.lvm.Remove(ctx, b.vg, c.Name)
		case Adopt:
			_ = shown.claim(ctx, d, c, "MACHINE-ID")
		case Use:
			_ = shown.activate(ctx, []Copy{c})
		}
	})
	switch makes := a == Create || a == Replace || a == Retire; {
	case makes && clone != nil && !d.Template:
		lines = append(lines, b.explainClone(ctx, *clone, d, size)...)
	case makes:
		if clone != nil {
			lines, d.On = append(lines, b.explainTemplate(ctx, *clone)...), clone.template
		}
		lines = append(lines, b.recorded(func(shown *volumes) { _ = shown.lvm.Create(ctx, shown.createOptions(d, size)) })...)
	}
	return lines
}

// recorded returns the commands that do would run.
func (b *volumes) recorded(do func(*volumes)) []string {
	var record command.Record
	dry, shown := *b.lvm, *b
	dry.Run, shown.lvm = &record, &dry
	do(&shown)
	return record.Lines()
}
