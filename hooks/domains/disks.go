// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"slices"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// LocalDisks are those of the bound disks that have a local copy, ready to be
// filled. With targets, only those; one that is not bound is a
// failure.NotFound.
func (s *Service) LocalDisks(ctx context.Context, d bindings.Domain, bound []bindings.Bound, targets ...string) ([]localdisk.Disk, error) {
	for _, t := range targets {
		if !slices.ContainsFunc(bound, func(b bindings.Bound) bool { return isLocal(b) && b.Disk.Target == t }) {
			err := failure.New(failure.NotFound, "%s: disk %s: it is not bound to a local copy", d, failure.OneLine(t))
			return nil, failure.Hint(err, "see `diskhook show %s`", d.NameArg())
		}
	}
	var chosen []bindings.Bound
	for _, b := range bound {
		if isLocal(b) && (len(targets) == 0 || slices.Contains(targets, b.Disk.Target)) {
			chosen = append(chosen, b)
		}
	}
	return s.Host.LocalDisks(ctx, d, chosen)
}

func isLocal(b bindings.Bound) bool { return b.Binding.Kind == "local" }

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
