// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bytes"
	"context"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// namesRaw says whether the definition names the raw copy that an earlier call
// has left. libvirt writes that at a pivot and not before. So it has all that
// the disk has, and what the guest wrote since.
func (s *Service) namesRaw(ctx context.Context, p *localdisk.Pivoting) (bool, error) {
	raw, err := p.RawPath(ctx)
	if err != nil || raw == "" {
		return false, err
	}
	if s.Libvirt.URI == "" {
		return false, noLibvirt(p)
	}
	d, err := s.Look(ctx, p.Disk.Domain)
	if failure.KindOf(err) == failure.NotFound {
		err := failure.New(failure.Precondition, "%s: its domain is not defined any more, so whether its raw copy %s had become the disk is not known", p.Disk, raw)
		return false, failure.Hint(err, "define it again as it was with `virsh define`, then run this again; or give both up with `diskhook local remove --discard-guest-data %s %s`", p.Disk.Domain, p.Disk.Target)
	}
	if err != nil {
		return false, err
	}
	disk, there := d.Doc.Disk(p.Disk.Target)
	return there && disk.Source.Path() == raw, nil
}

// rawFill is how a disk is bound that became raw: its copy could be made again,
// but not as an overlay.
const rawFill = "start"

func noLibvirt(p *localdisk.Pivoting) error {
	err := failure.New(failure.Precondition, "%s: libvirt is not asked under a moved root", p.Disk)
	return failure.Hint(err, "name a connection with --connect URI")
}

// agree makes the definition open the disk as what it is by its receipt, at its
// stable path. libvirt itself writes the raw copy's own path there at a pivot.
func (s *Service) agree(ctx context.Context, p *localdisk.Pivoting) error {
	if s.Libvirt.URI == "" {
		return noLibvirt(p)
	}
	d, err := s.Look(ctx, p.Disk.Domain)
	if failure.KindOf(err) == failure.NotFound {
		return nil // undefined since; who defines it anew finds the receipt
	}
	if err != nil {
		return err
	}
	release, err := s.hold(ctx, d.Domain)
	if err != nil {
		return err
	}
	defer release()
	if d, err = s.Look(ctx, p.Disk.Domain); err != nil {
		return err
	}
	after, err := s.agreed(ctx, d, p)
	if err != nil || bytes.Equal(after.Bytes(), d.Doc.Bytes()) {
		return err
	}
	if err := s.Libvirt.Define(ctx, after.Bytes()); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	stored, err := s.Look(ctx, d.UUID)
	if err == nil {
		err = same(after, stored)
	}
	if err != nil {
		err = fmt.Errorf("%s: libvirt did not store what it was given: %w", d, err)
		return failure.Hint(err, "see `virsh dumpxml --inactive %s`, then run `diskhook local settle --raw %s %s` again", d.NameArg(), d.NameArg(), p.Disk.Target)
	}
	return failpoint.Hit("pivot.redefined")
}

// onItsCopy refuses a definition whose disk is something else than its copy,
// such as a snapshot on top of it: what the guest wrote is there.
func (s *Service) onItsCopy(ctx context.Context, d Domain, p *localdisk.Pivoting) error {
	raw, err := p.RawPath(ctx)
	if err != nil {
		return err
	}
	disk, there := d.Doc.Disk(p.Disk.Target)
	stable := localdisk.StablePath(s.Host.Layout, p.Disk.Domain, p.Disk.Target)
	if path := disk.Source.Path(); there && (path == stable || path == raw && raw != "") {
		return nil
	}
	err = failure.New(failure.Conflict, "%s: its definition has %s, and not the disk's copy itself", p.Disk, failure.OneLine(disk.Source.String()))
	return failure.Hint(err, "if that is a snapshot, start the domain and merge it with `virsh blockcommit %s %s --active --pivot`; else put %s back with `virsh edit %[1]s`; then run this again", d.NameArg(), p.Disk.Target, stable)
}

// agreed is the definition as it has to be.
func (s *Service) agreed(ctx context.Context, d Domain, p *localdisk.Pivoting) (*xmlrewrite.Document, error) {
	disk, there := d.Doc.Disk(p.Disk.Target)
	entry := d.entry(p.Disk.Target)
	if !there || entry == nil || entry.Local == nil {
		return d.Doc, nil // it is not bound any more; that is the hook's to refuse
	}
	format, fill, on := "raw", rawFill, template(p.Receipt)
	switch {
	case p.Marked():
	case on != "": // which is not how it was filled
		format, fill = "qcow2", entry.Local.Fill
	default:
		format, fill = "qcow2", "instant"
	}
	if err := s.onItsCopy(ctx, d, p); err != nil {
		return nil, err
	}
	stable := localdisk.StablePath(s.Host.Layout, p.Disk.Domain, p.Disk.Target)
	if disk.Source.Path() == stable && disk.Driver.Type == format && entry.Local.Fill == fill && entry.Local.Template == on && (entry.Local.Copy == "" || entry.Local.Copy == p.Receipt.Copy) {
		return d.Doc, nil
	}
	metadata, err := d.Doc.Metadata()
	if err != nil {
		return nil, err
	}
	e, _ := metadata.Disk(p.Disk.Target)
	e.Local.Fill, e.Local.Template = fill, on
	if e.Local.Copy != "" {
		e.Local.Copy = p.Receipt.Copy
	}
	local := xmlrewrite.LocalDisk{
		Target: p.Disk.Target, Path: stable, Block: p.Disk.Backend != "dir",
		Format: format, Cache: disk.Driver.Cache, IO: disk.Driver.IO,
	}
	after, err := xmlrewrite.Apply(d.Doc, local, xmlrewrite.SetMetadata{Disks: metadata.Disks})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, failure.Wrap(failure.Precondition, err))
	}
	return s.numbered(ctx, d, after)
}
