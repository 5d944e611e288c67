// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"

	"diskhook/storage/failure"
)

// KeepOverlay takes back the making of a raw copy that was interrupted: the raw
// copy goes, and the overlay is the disk, as it was all the time. It refuses a
// disk that is raw by now, or may be: what the guest wrote last would be lost.
// A domain that runs may be on its way there, with QEMU at work.
//
// localdisk.ErrSettled: the disk is raw, and nothing is left of its overlay.
func (s *Service) KeepOverlay(ctx context.Context, domain, key string) (err error) {
	p, err := s.Local.Pivoting(domain, key)
	if err != nil {
		return err
	}
	defer func() { p.Release(err) }()
	runs, err := s.runs(ctx, p.Disk.Domain)
	if err != nil {
		return err
	}
	refuse := func(kind *failure.Kind, why, first string) error {
		err := failure.New(kind, "%s: its raw copy stays: %s", p.Disk, why)
		return failure.Hint(err, "%sgo on with `diskhook local settle --raw %s %s`", first, p.Disk.Domain, p.Disk.Target)
	}
	if runs && !p.Marked() {
		return refuse(failure.Conflict, "its domain runs, and may have gone over to it", "shut the domain down, then try again, or ")
	}
	raw := p.Marked()
	if !raw {
		raw, err = s.namesRaw(ctx, p)
	}
	switch {
	case err != nil:
		return err
	case raw:
		return refuse(failure.Precondition, "it is the disk by now", "")
	}
	return p.Clean(ctx)
}
