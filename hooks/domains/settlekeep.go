// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// KeepOverlay takes back the making of a raw copy that was interrupted: the raw
// copy goes, and the overlay is the disk, as it was all the time. It refuses what
// MayKeepOverlay does, and a disk whose definition has the raw copy.
//
// localdisk.ErrSettled: the disk is raw, and nothing is left of its overlay.
func (s *Service) KeepOverlay(ctx context.Context, domain, key string) (err error) {
	p, err := s.Local.Pivoting(domain, key)
	if err != nil {
		return err
	}
	defer func() { p.Release(err) }()
	if err := s.MayKeepOverlay(ctx, p.Receipt); err != nil {
		return err
	}
	raw, err := s.namesRaw(ctx, p)
	if err == nil && raw {
		err = rawStays(p.Disk, failure.Precondition, isRaw, "")
	}
	if err != nil {
		return err
	}
	return p.Clean(ctx)
}

// MayKeepOverlay refuses a disk that is raw by its receipt, and one that may be:
// what the guest wrote last would be lost. A domain that runs may be on its way
// there, with QEMU at work.
func (s *Service) MayKeepOverlay(ctx context.Context, r localdisk.Receipt) error {
	if r.Overlay == nil {
		return rawStays(r.Disk(), failure.Precondition, isRaw, "")
	}
	runs, err := s.runs(ctx, r.Domain)
	if err == nil && runs {
		err = rawStays(r.Disk(), failure.Conflict, "its domain runs, and may have gone over to it", "shut the domain down, then try again, or ")
	}
	return err
}

const isRaw = "it is the disk by now"

func rawStays(d localdisk.Disk, kind *failure.Kind, why, first string) error {
	err := failure.New(kind, "%s: its raw copy stays: %s", d, why)
	return failure.Hint(err, "%sgo on with `diskhook local settle --raw %s %s`", first, d.NameArg(), d.Target)
}
