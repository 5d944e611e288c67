// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// Somebody took our metadata out of a definition, but its disk still is the
// copy, or an image on top of it. The receipt knows what was bound.

// forgotten is a disk that is its copy, but not bound to it any more.
type forgotten struct {
	entry xmlrewrite.BoundDisk // without Origin where nobody knows it
	above string               // the image on top of the copy that the disk is; "" for the copy itself
}

// forgotten finds such disks. fit chooses receipts.
func (s *Service) forgotten(ctx context.Context, d bindings.Domain, doc *xmlrewrite.Document, receipts map[string]localdisk.Receipt, fit func(localdisk.Receipt) bool) ([]forgotten, error) {
	if d.OVirt || bindings.SameDomain(d) != nil {
		return nil, nil
	}
	var found []forgotten
	for _, disk := range d.Disks {
		r, filled := receipts[disk.Target]
		if _, bound := d.Metadata.Disk(disk.Target); bound || !filled || r.Volume != "" || !fit(r) {
			continue
		}
		f := forgotten{entry: xmlrewrite.BoundDisk{
			Target: disk.Target, Serial: disk.Serial, Source: localdisk.StablePath(s.Host.Layout, d.UUID, disk.Target),
			Local:       &xmlrewrite.Local{Backend: r.Backend, Fill: cmp.Or(r.Fill, "now"), Template: template(r), OnStop: r.OnStop, Host: r.Machine},
			OriginImage: madeFrom(r),
		}}
		if disk.Path != f.entry.Source {
			if s.Host.Undrifted(ctx, d, []bindings.Bound{{Disk: disk, Recorded: &f.entry}}) != nil {
				continue
			}
			f.above = disk.Path
		}
		var err error
		if f.entry.Origin, err = originFrom(ctx, doc, r); err != nil {
			return nil, fmt.Errorf("%s: disk %s: its receipt: %w", d, disk.Target, failure.Wrap(failure.Precondition, err))
		}
		found = append(found, f)
	}
	return found, nil
}

// madeFrom is the image of a repository that a copy was made from; nil: none.
func madeFrom(r localdisk.Receipt) *xmlrewrite.Image {
	if r.From == nil {
		return nil
	}
	return &xmlrewrite.Image{Repo: r.From.Repo, ID: r.From.ID}
}

// template is what the metadata say of a copy that lies on a template.
func template(r localdisk.Receipt) string {
	if r.OnTemplate() {
		return "overlay"
	}
	return ""
}

// remember writes the metadata of forgotten disks anew. Those whose origin
// nobody knows are left out.
func remember(d bindings.Domain, doc *xmlrewrite.Document, disks []forgotten) (*xmlrewrite.Document, error) {
	var entries []xmlrewrite.BoundDisk
	if d.Metadata != nil {
		entries = append(entries, d.Metadata.Disks...)
	}
	had := len(entries)
	for _, f := range disks {
		if f.entry.Origin != nil {
			entries = append(entries, f.entry)
		}
	}
	if len(entries) == had {
		return doc, nil
	}
	after, err := xmlrewrite.Apply(doc, xmlrewrite.SetMetadata{Disks: entries})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, failure.Wrap(failure.Precondition, err))
	}
	return after, nil
}

// bindAgain takes up disks that run on their copy, but are not bound to it any
// more. Their copies stay as they are.
func (s *Service) bindAgain(ctx context.Context, p *Plan) error {
	now, err := bindings.ReadDomain(p.After)
	if err != nil {
		return err
	}
	receipts, err := s.receipts(p.Domain)
	if err != nil {
		return err
	}
	found, err := s.forgotten(ctx, now, p.After, receipts, func(r localdisk.Receipt) bool { return !r.Discarding })
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.entry.Origin == nil {
			return withoutOrigin(p.Domain, f, receipts[f.entry.Target])
		}
		p.remembered = append(p.remembered, f.entry.Target)
		p.Notes = append(p.Notes, fmt.Sprintf("disk %s: bound again to its local copy, as its receipt says", f.entry.Target))
	}
	p.After, err = remember(now, p.After, found)
	return err
}

// withoutOrigin refuses a disk of which nobody knows what it was before it was
// bound: it could not be given back.
func withoutOrigin(d Domain, f forgotten, r localdisk.Receipt) error {
	target, arg := f.entry.Target, d.NameArg()
	err := failure.New(failure.Precondition, "%s: disk %s: it is its local copy, but neither its metadata nor its receipt say what it was before", d, target)
	if f.above != "" {
		return failure.Hint(err, "save the copy with `diskhook local export %[1]s %[2]s FILE`, put that below %[3]s with `qemu-img rebase -u -F raw -b FILE`, and give the copy up with `diskhook local remove --discard-guest-data %[1]s %[2]s`", arg, target, failure.OneLine(f.above))
	}
	return failure.Hint(err, "go on with a file that has its data: `diskhook domain revert --export FILE %[1]s %[2]s`; or set its source to the image that the copy was made from with `virsh edit %[1]s`, and bind it with `diskhook domain apply --bind %[2]s:local=%[3]s %[1]s`", arg, target, r.Backend)
}

// originFrom is the disk of a receipt as it was before. A receipt from before
// origins were kept tells the top layer of the chain alone, which is what a
// definition without <backingStore> says; that of an adopted copy may not even
// tell that: then it is nil.
func originFrom(ctx context.Context, doc *xmlrewrite.Document, r localdisk.Receipt) ([]byte, error) {
	if r.Origin != "" {
		kept := xmlrewrite.BoundDisk{Target: r.Target, Origin: []byte(r.Origin)}
		if _, err := kept.OriginDisk(); err == nil {
			return kept.Origin, nil
		}
	}
	if len(r.Source) == 0 || r.From != nil { // the image is not what the disk was
		return nil, nil
	}
	top := r.Source[0]
	was, err := xmlrewrite.Apply(doc, xmlrewrite.LocalDisk{Target: r.Target, Path: top.Path, Format: top.Format, Block: isBlock(ctx, top.Path)})
	if err != nil {
		return nil, err
	}
	return was.Origin(r.Target)
}

// isBlock goes by the path where there is nothing at it, or no answer, as on
// storage that is away.
func isBlock(ctx context.Context, path string) bool {
	if st, err := withPatience(ctx, func() (os.FileInfo, error) { return os.Stat(path) }); err == nil {
		return st.Mode()&os.ModeDevice != 0
	}
	return strings.HasPrefix(path, "/dev/")
}
