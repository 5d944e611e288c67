// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"

	"diskhook/storage/failpoint"
	"diskhook/storage/lvm"
)

// Templates in a thin pool: a thin volume without a node, read-only, of which
// copies are thin snapshots. A snapshot has its blocks by itself: dm-thin would
// let its origin go. That would win nothing as long as the blocks are shared,
// and the next disk would have them copied once more, so a template stays while
// it is the origin of a volume.
//
// A linear template has no clones, but overlays lie on it. From the first start
// of one its node stays until the template goes: another domain may be about to
// open it whenever one has closed it.

func (b *volumes) templateHome() string {
	if b.pool == "" {
		return b.vg
	}
	return b.vg + "/" + b.pool
}

func (b *volumes) keeps(c Copy) bool { return c.Pool == b.pool }

func (b *volumes) cloneless(context.Context) string {
	if b.pool == "" {
		return "a clone of a linear volume is slow for ever"
	}
	return ""
}

func (b *volumes) clonesHold() bool { return true }

// roomWithout takes each thin template for full: what a volume without a node has
// of the pool is not reported, nor what it has of its metadata.
func (b *volumes) roomWithout(ctx context.Context, gone []Copy, sizes []int64) error {
	if len(gone) == 0 {
		return b.room(ctx, sizes)
	}
	report, err := b.report(ctx)
	if err != nil {
		return err
	}
	if b.pool == "" {
		for _, c := range gone {
			report.VG.Free += c.Size
		}
		return b.groupRoom(report.VG, sizes)
	}
	pool, err := b.findPool(report)
	if err != nil {
		return err
	}
	pool.MetadataPercent = 0
	for _, c := range gone {
		pool.DataPercent -= 100 * float64(c.Size) / float64(max(1, pool.Size))
	}
	return b.poolRoom(pool)
}

func (b *volumes) createTemplate(ctx context.Context, name string, size int64, tags []string) (Copy, error) {
	if err := b.lvm.Create(ctx, b.templateOptions(name, size, tags)); err != nil {
		return Copy{}, err
	}
	return b.made(ctx, name)
}

func (b *volumes) templateOptions(name string, size int64, tags []string) lvm.CreateOptions {
	return lvm.CreateOptions{
		VG: b.vg, Name: name, Size: sectors(size), Pool: b.pool,
		Tags: append([]string{tagUpdating}, tags...), SkipActivation: true, Activate: true,
	}
}

func (b *volumes) reopenTemplate(ctx context.Context, c Copy) error {
	if err := b.lvm.SetReadOnly(ctx, b.vg, false, c.Name); err != nil {
		return err
	}
	if err := b.activate(ctx, []Copy{c}); err != nil {
		return err
	}
	return c.awaitNode(ctx)
}

func (b *volumes) finishTemplate(ctx context.Context, c Copy) error {
	if err := b.deactivate(ctx, []Copy{c}); err != nil {
		return err
	}
	if err := failpoint.Hit("template.closed"); err != nil {
		return err
	}
	if err := b.lvm.SetReadOnly(ctx, b.vg, true, c.Name); err != nil {
		return err
	}
	if err := failpoint.Hit("template.read-only"); err != nil {
		return err
	}
	return b.retag(ctx, c, nil, []string{tagUpdating})
}

func (b *volumes) spoil(ctx context.Context, c Copy) (Copy, error) {
	if c.State == Updating {
		return c, nil
	}
	c.State = Updating
	return c, b.retag(ctx, c, []string{tagUpdating}, nil)
}

// clone: a snapshot is as large as its origin at first, and UPDATING keeps
// anybody from it until it has grown.
func (b *volumes) clone(ctx context.Context, template Copy, d Disk, _ int64) error {
	if err := b.lvm.Snapshot(ctx, b.snapshotOptions(template.Name, d)); err != nil {
		return err
	}
	return failpoint.Hit("clone.made")
}

func (b *volumes) cloned(ctx context.Context, template Copy, d Disk, size int64) (Copy, error) {
	if size > template.Size {
		if err := b.lvm.Extend(ctx, b.vg, d.CopyName(), sectors(size)); err != nil {
			return Copy{}, err
		}
	}
	return b.made(ctx, d.CopyName())
}

func (b *volumes) snapshotOptions(template string, d Disk) lvm.SnapshotOptions {
	d.On = template
	return lvm.SnapshotOptions{
		VG: b.vg, Origin: template, Name: d.CopyName(),
		Tags: creationTags(d), SkipActivation: !d.OVirt(), Activate: true,
	}
}

func (b *volumes) retag(ctx context.Context, c Copy, add, del []string) error {
	return b.lvm.ChangeTags(ctx, b.vg, []string{c.Name}, add, del)
}

func (b *volumes) explainTemplate(ctx context.Context, p clonePlan) []string {
	if p.ready {
		return nil
	}
	lines := b.recorded(func(shown *volumes) {
		_ = shown.lvm.Create(ctx, shown.templateOptions(p.template, p.size, p.tags))
	})
	lines = append(lines, "# copy "+p.path+" to "+b.node(p.template)+", which is then flushed")
	return append(lines, b.recorded(func(shown *volumes) { _ = shown.finishTemplate(ctx, Copy{Name: p.template}) })...)
}

func (b *volumes) explainClone(ctx context.Context, p clonePlan, d Disk, size int64) []string {
	has := p.size
	if report, err := b.report(ctx); err == nil {
		has = report.VG.RoundUp(p.size)
	}
	return append(b.explainTemplate(ctx, p), b.recorded(func(shown *volumes) {
		_ = shown.lvm.Snapshot(ctx, shown.snapshotOptions(p.template, d))
		if size > has {
			_ = shown.lvm.Extend(ctx, b.vg, d.CopyName(), sectors(size))
		}
	})...)
}
