// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lvm"
	"diskhook/storage/repository/format"
)

// Tags of logical volumes. That of the repository tells its volumes from all others,
// which are never touched.
const (
	tagOf = "DH_REPO:" // and the area
	// tagNew is there until what an earlier owner left at the beginning, and behind
	// the end of a raw volume, is overwritten.
	tagNew = "DH_NEW"
	// tagGrow and the old size in bytes: what lies behind it is not zero yet.
	tagGrow = "DH_GROW:"
)

// wiped are the bytes at the beginning of a new volume that are zeroed, so that nobody
// takes what is there for an image's header.
const wiped = 1 << 20

func checkVolume(id, kind string) error {
	if !host.IsUUID(id) || kind != imagecheck.Raw && kind != imagecheck.QCOW2 {
		return failure.New(failure.Usage, "volume %q of kind %q: no such thing", id, kind)
	}
	return nil
}

// Fits implements format.Volumes: a logical volume may have any size that the group has.
func (p *place) Fits(context.Context, int64) error { return nil }

// Path implements format.Volumes.
func (p *place) Path(id, kind string) string { return p.node(p.Backing(id, kind)) }

func (p *place) node(name string) string { return filepath.Join(p.host.Dev, p.vg, name) }

// Backing implements format.Volumes: the name alone, which is in the same directory of
// /dev on all hosts.
func (p *place) Backing(id, kind string) string { return id + "." + kind }

// find returns a volume of this repository; nil: there is none.
func (p *place) find(ctx context.Context, id, kind string) (*lvm.LV, lvm.Report, error) {
	if err := checkVolume(id, kind); err != nil {
		return nil, lvm.Report{}, err
	}
	report, err := p.report(ctx)
	if err != nil {
		return nil, report, err
	}
	lv, ok := report.LV(p.Backing(id, kind))
	if !ok {
		return nil, report, nil
	}
	if !slices.Contains(lv.Tags, p.tag()) {
		return nil, report, failure.New(failure.Conflict, "%s: it is not this repository's", lv)
	}
	p.uuids.Store(id, lv.UUID)
	return &lv, report, nil
}

// tag marks the volumes of this repository.
func (p *place) tag() string { return tagOf + p.area.Area }

// Make implements format.Volumes. The content of a volume is what was on the disk
// before, so that none is fresh. One of another kind than raw has room for the most that
// its image may take; it does not grow while it is written.
func (p *place) Make(ctx context.Context, id, kind string, bytes int64) (fresh bool, err error) {
	if err := p.writable(); err != nil {
		return false, err
	}
	lv, report, err := p.find(ctx, id, kind)
	if err != nil {
		return false, err
	}
	if lv == nil {
		if err := report.VG.Health(); err != nil {
			return false, err
		}
		err := p.host.LVM.Create(ctx, lvm.CreateOptions{
			VG: p.vg, Name: p.Backing(id, kind), Size: sectors(bytes), Tags: []string{p.tag(), tagNew},
			SkipActivation: true, Activate: true,
		})
		if err != nil {
			return false, p.noSpace(err)
		}
		if lv, _, err = p.find(ctx, id, kind); err == nil && lv == nil {
			err = failure.New(failure.Conflict, "lv %s/%s: vanished after it was made", p.vg, p.Backing(id, kind))
		}
		if err != nil {
			return false, err
		}
	}
	if err := p.use(ctx, *lv, true); err != nil {
		return false, err
	}
	if lv.Size < bytes {
		if err := p.host.LVM.Extend(ctx, p.vg, lv.Name, sectors(bytes)); err != nil {
			return false, p.noSpace(err)
		}
	} else if !slices.Contains(lv.Tags, tagNew) {
		return false, nil
	}
	if err := p.wipe(ctx, *lv, kind, bytes); err != nil {
		return false, err
	}
	return false, p.host.LVM.ChangeTags(ctx, p.vg, []string{lv.Name}, nil, []string{tagNew})
}

// wipe zeroes the beginning of a volume that is new, and of a raw one what lies behind
// its end in the last extent.
func (p *place) wipe(ctx context.Context, lv lvm.LV, kind string, bytes int64) error {
	return p.write(lv.Name, func(f *os.File, size int64) error {
		if slices.Contains(lv.Tags, tagNew) {
			if err := blockdev.ZeroRange(ctx, f, 0, min(size, wiped)); err != nil {
				return err
			}
		}
		if kind != imagecheck.Raw {
			return nil
		}
		return blockdev.ZeroRange(ctx, f, bytes, size-bytes)
	})
}

// write opens a volume, and flushes what do writes.
func (p *place) write(name string, do func(f *os.File, size int64) error) error {
	f, err := os.OpenFile(p.node(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	size, err := blockdev.Size(f)
	if err == nil {
		err = do(f, size)
	}
	if err == nil {
		err = blockdev.Flush(f)
	}
	return errors.Join(err, f.Close())
}

// sectors is what LVM takes for a size.
func sectors(bytes int64) int64 { return max(512, (bytes+511)&^511) }

func (p *place) noSpace(err error) error {
	if errors.Is(err, failure.NoSpace) {
		return failure.Hint(err, "extend the group with `vgextend %s DEVICE`, or remove images and `diskhook repo fix --all`", p.vg)
	}
	return err
}

// activate makes a volume's node appear. In a group with a lock manager nobody else has
// one that is to be written.
func (p *place) activate(ctx context.Context, lv lvm.LV, write bool) error {
	var err error
	switch active := lv.Active != nil && *lv.Active; {
	case p.area.Writer == "" && write:
		err = p.host.LVM.ActivateExclusive(ctx, p.vg, lv.Name)
		if errors.Is(err, lvm.ErrOtherWay) { // it was read here until now
			if err = p.host.LVM.Deactivate(ctx, p.vg, lv.Name); err == nil {
				err = p.host.LVM.ActivateExclusive(ctx, p.vg, lv.Name)
			}
		}
	case p.area.Writer == "" && !active:
		err = p.host.LVM.ActivateShared(ctx, p.vg, lv.Name)
	case !active:
		err = p.host.LVM.Activate(ctx, p.vg, lv.Name)
	}
	if err != nil {
		return err
	}
	return p.host.awaitNode(ctx, p.node(lv.Name))
}

// OpenVolume implements format.Volumes.
func (p *place) OpenVolume(ctx context.Context, id, kind string, write bool) error {
	if err := p.writable(); err != nil {
		return err // the writer might remove it meanwhile, and give its blocks to another
	}
	lv, _, err := p.find(ctx, id, kind)
	if err != nil {
		return err
	}
	if lv == nil {
		return failure.New(failure.NotFound, "lv %s/%s: it does not exist", p.vg, p.Backing(id, kind))
	}
	if err := lv.Health(); err != nil {
		return err
	}
	return p.use(ctx, *lv, write)
}

// Grow implements format.Volumes. Where a raw volume ended is noted first, so that what
// is behind that becomes zero in any case. It may take long.
func (p *place) Grow(ctx context.Context, id, kind string, bytes int64) error {
	if err := p.writable(); err != nil {
		return err
	}
	lv, _, err := p.find(ctx, id, kind)
	if err == nil && lv == nil {
		err = failure.New(failure.NotFound, "lv %s/%s: it does not exist", p.vg, p.Backing(id, kind))
	}
	if err != nil {
		return err
	}
	from, noted := grownFrom(*lv)
	if !noted && lv.Size >= bytes {
		return nil
	}
	if err := p.use(ctx, *lv, true); err != nil {
		return err
	}
	note := tagGrow + strconv.FormatInt(from, 10)
	if kind == imagecheck.Raw && !noted {
		if err := p.host.LVM.ChangeTags(ctx, p.vg, []string{lv.Name}, []string{note}, nil); err != nil {
			return err
		}
	}
	if lv.Size < bytes {
		if err := p.host.LVM.Extend(ctx, p.vg, lv.Name, sectors(bytes)); err != nil {
			return p.noSpace(err)
		}
	}
	if kind != imagecheck.Raw {
		return nil
	}
	err = p.write(lv.Name, func(f *os.File, size int64) error { return blockdev.ZeroRange(ctx, f, from, size-from) })
	if err != nil {
		return err
	}
	return p.host.LVM.ChangeTags(ctx, p.vg, []string{lv.Name}, nil, []string{note})
}

// grownFrom is where a volume ended before it grew, which was noted if that is not done.
func grownFrom(lv lvm.LV) (from int64, noted bool) {
	for _, tag := range lv.Tags {
		if text, ok := strings.CutPrefix(tag, tagGrow); ok {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 && n <= lv.Size {
				return n, true
			}
		}
	}
	return lv.Size, false
}

// Flush implements format.Volumes. LVM's own metadata is durable when a command ends.
func (p *place) Flush(_ context.Context, id, kind string) error {
	if err := checkVolume(id, kind); err != nil {
		return err
	}
	return p.write(p.Backing(id, kind), func(*os.File, int64) error { return nil })
}

// Allocated implements format.Volumes.
func (p *place) Allocated(ctx context.Context, id, kind string) (int64, error) {
	lv, _, err := p.find(ctx, id, kind)
	if err == nil && lv == nil {
		err = failure.New(failure.NotFound, "lv %s/%s: it does not exist", p.vg, p.Backing(id, kind))
	}
	if err != nil {
		return 0, err
	}
	return lv.Size, nil
}

// Erase implements format.Volumes. LVM refuses to deactivate a volume that is open here, and
// to activate one that is active on another host of a group with a lock manager.
func (p *place) Erase(ctx context.Context, id, kind string, how format.Erasure, progress func(done, total int64)) error {
	if err := p.writable(); err != nil {
		return err
	}
	lv, _, err := p.find(ctx, id, kind)
	if err != nil || lv == nil {
		return err
	}
	free, err := p.last(*lv)
	if err != nil {
		return err
	}
	defer free()
	if err := p.host.LVM.Deactivate(ctx, p.vg, lv.Name); err != nil {
		return err
	}
	lv.Active = nil
	if err := p.activate(ctx, *lv, true); err != nil {
		return err
	}
	return p.write(lv.Name, func(f *os.File, _ int64) error {
		return blockdev.Erase(ctx, f, how.Zero, how.Discard, progress)
	})
}

// Delete implements format.Volumes. LVM refuses a volume that is open here, or active
// on another host of a group with a lock manager; one that another process of this host
// is about to open has its share in it.
func (p *place) Delete(ctx context.Context, id, kind string) error {
	if err := p.writable(); err != nil {
		return err
	}
	lv, _, err := p.find(ctx, id, kind)
	if err != nil {
		return err
	}
	if lv != nil {
		free, err := p.last(*lv)
		if err != nil {
			return err
		}
		defer free()
		if err := p.host.LVM.Deactivate(ctx, p.vg, lv.Name); err != nil && !errors.Is(err, lvm.ErrNoLV) {
			return err
		}
		if err := p.host.LVM.Remove(ctx, p.vg, lv.Name); err != nil && !errors.Is(err, lvm.ErrNoLV) {
			return err
		}
	}
	cursors, err := filepath.Glob(filepath.Join(p.host.Cursors, id+"-*"))
	for _, path := range cursors {
		err = errors.Join(err, atomicfile.Remove(path))
	}
	return err
}

// Data implements format.Volumes.
func (p *place) Data(ctx context.Context) ([]format.Data, error) {
	return p.volumes(ctx, func(lvm.LV) bool { return true })
}

// Capacity implements format.Place: that of the volume group.
func (p *place) Capacity(ctx context.Context) (format.Capacity, error) {
	report, err := p.report(ctx)
	if err != nil {
		return format.Capacity{}, err
	}
	return format.Capacity{Total: report.VG.Size, Available: report.VG.Free}, nil
}

// Cursor implements format.Volumes. It is a file of this host: another one copies from
// the beginning. Its name has the logical volume's own UUID, for a volume that was made
// again under the same name has other blocks.
func (p *place) Cursor(id string) string {
	lv, ok := p.uuids.Load(id)
	if !ok {
		lv = "unknown"
	}
	return filepath.Join(p.host.Cursors, fmt.Sprintf("%s-%s", id, lv))
}
