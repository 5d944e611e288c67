// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"cmp"
	"context"
	"fmt"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// LocalDisks are those of the bound disks that have a local copy, in
// localdisk's words and with Create set: it is for verbs, which may make
// copies where a start may not. With targets, only those; one that is not
// bound is a failure.NotFound.
func (s *Service) LocalDisks(ctx context.Context, d bindings.Domain, bound []bindings.Bound, targets ...string) ([]localdisk.Disk, error) {
	var disks []localdisk.Disk
	wanted := map[string]bool{}
	for _, t := range targets {
		wanted[t] = true
	}
	for _, b := range bound {
		if b.Binding.Kind != "local" || len(targets) > 0 && !wanted[b.Disk.Target] {
			continue
		}
		delete(wanted, b.Disk.Target)
		disk, err := s.localDisk(ctx, d, b)
		if err != nil {
			return nil, err
		}
		disks = append(disks, disk)
	}
	for _, t := range targets {
		if wanted[t] {
			err := failure.New(failure.NotFound, "%s: disk %s: it is not bound to a local copy", d, failure.OneLine(t))
			return nil, failure.Hint(err, "see `diskhook show %s`", d.NameArg())
		}
	}
	return disks, nil
}

func (s *Service) localDisk(ctx context.Context, d bindings.Domain, b bindings.Bound) (localdisk.Disk, error) {
	disk := localdisk.Disk{
		Domain: d.UUID, DomainName: d.Name, Target: b.Disk.Target,
		Backend: cmp.Or(b.Binding.Value, s.Host.Config.Local.Backend),
		OnStop:  b.Binding.Option("on-stop", localdisk.Keep),
		Copy:    b.Binding.Option("copy", ""),
		Host:    b.Binding.Option("host", ""),
		Create:  true,
	}
	if d.OVirt {
		disk.Image, disk.Volume = b.Disk.Image, b.Disk.Volume
	}
	if err := disk.Validate(); err != nil {
		return disk, fmt.Errorf("%s: %w", d, err)
	}
	receipt, err := s.receiptOf(disk)
	if err != nil {
		return disk, err
	}
	source := b.Disk
	if b.Recorded != nil {
		origin, err := b.Recorded.OriginDisk()
		if err != nil {
			return disk, fmt.Errorf("%s: %w", d, err)
		}
		source = bindings.ReadDisk(origin, false, xmlrewrite.VDSMDevice{})
	}
	if s.Host.IsLocal(source.Path) {
		err := failure.New(failure.Precondition, "%s: disk %s: %s lies where local copies are kept, and is never a source", d, b.Disk.Target, source.Path)
		return disk, failure.Hint(err, "give the disk its own source with `virsh edit %s`", d.NameArg())
	}
	disk.Source = source.Layers()
	if last := len(disk.Source) - 1; last >= 0 && !source.Complete && disk.Source[last].Format != "raw" {
		below, err := imagecheck.Discover(ctx, disk.Source[last], s.Host.Config.Paths.Allowed)
		switch {
		case err == nil:
			disk.Source = append(disk.Source[:last:last], below...)
		case receipt != nil:
			// Most likely the copy is complete, and needs its source no more.
			disk.Source = receipt.Source
			s.Host.Log.Info("the chain of the source cannot be read", "disk", disk.String(), "err", err)
		default:
			return disk, fmt.Errorf("%s: its chain: %w", disk, err)
		}
	}
	return disk, nil
}

// fillable refuses to make a copy anew where the metadata name one that this
// host knows nothing of: the guest's writes may be in it.
func (s *Service) fillable(disks []localdisk.Disk) error {
	for _, disk := range disks {
		receipt, err := s.receiptOf(disk)
		if err != nil {
			return err
		}
		if receipt == nil && disk.Copy != "" {
			err := failure.New(failure.Precondition, "%s: its metadata name the copy %s, of which this host has no receipt", disk, disk.Copy)
			arg := bindings.Domain{Name: disk.DomainName, UUID: disk.Domain}.NameArg()
			return failure.Hint(err, "take it over with `diskhook local adopt %[1]s %[2]s`, or start over with `diskhook local recreate --discard-guest-data %[1]s %[2]s`", arg, disk.Target)
		}
	}
	return nil
}

// receiptOf is the receipt of a disk's copy; nil: there is none.
func (s *Service) receiptOf(disk localdisk.Disk) (*localdisk.Receipt, error) {
	all, err := localdisk.Receipts(s.Host.Layout, disk.Domain)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Key() == disk.Key() && !r.Discarding {
			return &r, nil
		}
	}
	return nil, nil
}
