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
	s, err := parse(parameters)
	if err != nil {
		return err
	}
	report, err := f.group(ctx, s)
	if err != nil {
		return err
	}
	if s.writer != "" && s.writer != f.HostID {
		return failure.Hint(readOnly(s.vg, s.writer), "run it on that host, or give this one with --set writer=%s", f.HostID)
	}
	lv, ok := report.LV(documentsLV)
	if ok && !slices.ContainsFunc(lv.Tags, isOurs) {
		return failure.New(failure.Conflict, "%s: it is not diskhook's", lv)
	}
	if ok && !slices.Contains(lv.Tags, tagNew) {
		return f.handOver(ctx, s, report)
	}
	return f.make(ctx, s, report, ok)
}

func isOurs(tag string) bool { return len(tag) > len(tagOf) && tag[:len(tagOf)] == tagOf }

// make makes the volume of documents; begun says that it was made, and no more.
func (f Format) make(ctx context.Context, s settings, report lvm.Report, begun bool) error {
	h := header{V: headerV1, Format: Name, Area: uuid.NewString(), Buckets: f.Buckets, Writer: s.writer}
	if s.buckets > 0 {
		h.Buckets = s.buckets
	}
	if h.Buckets == 0 {
		h.Buckets = defaultBuckets
	}
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
	if now.Writer != s.instead {
		err := failure.New(failure.Conflict, "vg %s: host %s alone writes to it, not %s", s.vg, now.Writer, s.instead)
		return failure.Hint(err, "give --set instead-of=%s if that host is gone for good", now.Writer)
	}
	h := now.header
	h.Writer = s.writer
	return now.writeHeader(h)
}
