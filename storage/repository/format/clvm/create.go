// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/layout"
)

// Create implements format.Format.
func (f Format) Create(ctx context.Context, parameters map[string]string) error {
	s, report, err := f.makeable(ctx, parameters)
	if err != nil {
		return err
	}
	lv, ok := report.LV(documentsLV)
	if ok && !slices.Contains(lv.Tags, tagNew) {
		return f.handOver(ctx, s, report)
	}
	return f.make(ctx, s, report, ok)
}

// CanCreate implements format.Format.
func (f Format) CanCreate(ctx context.Context, parameters map[string]string) error {
	s, report, err := f.makeable(ctx, parameters)
	if err != nil {
		return err
	}
	lv, ok := report.LV(documentsLV)
	switch {
	case !ok:
		return f.fits(s, report.VG)
	case slices.Contains(lv.Tags, tagNew):
		return nil
	}
	p, err := f.open(ctx, s, report)
	if err != nil {
		return err
	}
	return errors.Join(p.area.givesWay(s), p.Close())
}

// makeable refuses a group in which this host makes no repository.
func (f Format) makeable(ctx context.Context, parameters map[string]string) (settings, lvm.Report, error) {
	s, err := parse(parameters)
	if err != nil {
		return s, lvm.Report{}, err
	}
	report, err := f.group(ctx, s)
	if err != nil {
		return s, report, err
	}
	if s.writer != "" && s.writer != f.HostID {
		return s, report, failure.Hint(readOnly(s.vg, s.writer), "run it on that host, or give this one with --set writer=%s", f.HostID)
	}
	if lv, ok := report.LV(documentsLV); ok && !slices.ContainsFunc(lv.Tags, isOurs) {
		return s, report, failure.New(failure.Conflict, "%s: it is not diskhook's", lv)
	}
	return s, report, nil
}

// fits refuses a group without room for the volume of documents.
func (f Format) fits(s settings, vg lvm.VG) error {
	if err := vg.Health(); err != nil {
		return err
	}
	if bytes := vg.RoundUp(size(f.buckets(s))); bytes > vg.Free {
		err := failure.New(failure.NoSpace, "vg %s: %d bytes for documents are needed, and %d are free", s.vg, bytes, vg.Free)
		return failure.Hint(err, "extend the group with `vgextend %s DEVICE`, or give --set documents with a smaller number", s.vg)
	}
	return nil
}

// buckets are how many a new repository gets.
func (f Format) buckets(s settings) int {
	switch {
	case s.buckets > 0:
		return s.buckets
	case f.Buckets > 0:
		return f.Buckets
	}
	return defaultBuckets
}

func isOurs(tag string) bool { return len(tag) > len(tagOf) && tag[:len(tagOf)] == tagOf }

// make makes the volume of documents; begun says that it was made, and no more.
func (f Format) make(ctx context.Context, s settings, report lvm.Report, begun bool) error {
	h := header{V: headerV1, Format: Name, Area: uuid.NewString(), Buckets: f.buckets(s), Writer: s.writer}
	p := &place{host: f, vg: s.vg, area: &area{header: h, name: s.vg + "/" + documentsLV}}
	if !begun {
		if err := p.allot(ctx, report, documentsLV, size(h.Buckets), tagNew); err != nil {
			return err
		}
	}
	if err := p.format(ctx, documentsLV, h); err != nil {
		return err
	}
	if err := f.LVM.ChangeTags(ctx, s.vg, []string{documentsLV}, nil, []string{tagNew}); err != nil {
		return err
	}
	return f.LVM.Deactivate(ctx, s.vg, documentsLV) // Open has it as all hosts do
}

// allot makes the logical volume of documents, of so many bytes.
func (p *place) allot(ctx context.Context, report lvm.Report, name string, bytes int64, tags ...string) error {
	if err := report.VG.Health(); err != nil {
		return err
	}
	return p.host.LVM.Create(ctx, lvm.CreateOptions{
		VG: p.vg, Name: name, Size: bytes, Tags: append([]string{tagOf + "documents"}, tags...), SkipActivation: true, Activate: true,
	})
}

// format makes it one of no documents. It is this host's alone then.
func (p *place) format(ctx context.Context, name string, h header) error {
	if err := p.activate(ctx, lvm.LV{Name: name}, true); err != nil {
		return err
	}
	err := p.write(name, func(v *os.File, size int64) error { return blockdev.ZeroRange(ctx, v, 0, size) })
	if err != nil {
		return err
	}
	return begin(p.node(name), h)
}

// begin writes the header of a volume that is all zero.
func begin(path string, h header) error {
	dev, err := layout.Open(path, true)
	if err != nil {
		return err
	}
	a := &area{dev: dev, name: path, slot: slot{half: 1}}
	return errors.Join(a.writeHeader(h), dev.Close())
}

// handOver makes this host the writer instead of another one, if that is asked for. It has the
// slots to itself: another process of this host may have done the same meanwhile, and have
// added a volume that the header as it was opened does not name.
func (f Format) handOver(ctx context.Context, s settings, report lvm.Report) error {
	p, err := f.open(ctx, s, report)
	if err != nil || s.instead == "" || p.area.Writer == s.writer {
		return errors.Join(err, p.Close())
	}
	defer p.Close()
	if err := atomicfile.MkdirAll(p.locks, 0o700); err != nil {
		return err
	}
	l, err := p.acquire(ctx, slotsLock, true)
	if err != nil {
		return err
	}
	defer l.Release()
	now := &area{dev: p.area.dev, name: p.area.name}
	if err := now.readHeader(); err != nil || now.Writer == s.writer {
		return err
	}
	if err := now.givesWay(s); err != nil {
		return err
	}
	h := now.header
	h.Writer = s.writer
	return now.writeHeader(h)
}

// givesWay refuses to take a group from another host than the one that was named.
func (a *area) givesWay(s settings) error {
	if s.instead == "" || a.Writer == s.writer || a.Writer == s.instead {
		return nil
	}
	err := failure.New(failure.Conflict, "vg %s: host %s alone writes to it, not %s", s.vg, a.Writer, s.instead)
	return failure.Hint(err, "give --set instead-of=%s if that host is gone for good", a.Writer)
}
