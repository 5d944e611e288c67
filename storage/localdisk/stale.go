// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// A complete copy that no guest has used yet is only worth what its source is
// still worth. A file tells by its fingerprint that it was written to. A block
// device does not: its header stays as it was while a guest that runs on the
// device itself writes behind it. What keeps guests from that is the binding:
// from then on the domain's definition names the copy alone. So a copy of a
// device counts if it was made for the binding that is there now, and one that
// was made before is stale whatever its fingerprint says.

// ObserveSources is Observe, and looks at the sources of ready copies that no
// guest has used: one that changed since makes the copy stale, and Decide then
// replaces it. It is for those who make copies or bind a domain to them; a
// start never looks at the source of a ready copy.
func (s *Service) ObserveSources(ctx context.Context, disks []Disk) ([]Observed, error) {
	observed, err := s.Observe(ctx, disks)
	if err != nil {
		return nil, err
	}
	return observed, s.lookAtSources(ctx, observed)
}

func (s *Service) lookAtSources(ctx context.Context, observed []Observed) error {
	if err := s.markStale(ctx, observed); err != nil {
		err = fmt.Errorf("%w: so it cannot be told whether its copy, which no guest has used yet, is still right", err)
		return failure.Hint(err, "bring the storage of its source back, then try again")
	}
	for _, o := range observed {
		if o.Busy && o.Stale {
			err := failure.New(failure.Temporary, "%s: it is not bound yet, and a copy of its source, a block device, is being made: what guests write to the device meanwhile would be missing", o.Disk)
			return failure.Hint(err, "wait for that copy or stop it with `diskhook local cancel %s`, then run this again, which makes the copy", o.Disk.args())
		}
	}
	return nil
}

func (s *Service) markStale(ctx context.Context, observed []Observed) error {
	for i, o := range observed {
		r := o.Receipt
		unused := o.Copy.State == Ready && r != nil && !r.Used && !r.Discarding
		begun := o.Busy && o.Disk.BoundAnew
		if !unused && !begun || len(o.Disk.Source) == 0 && o.Disk.From == nil {
			continue
		}
		info, err := s.Inspect(ctx, o.Disk)
		if err != nil {
			return fmt.Errorf("%s: its source: %w", o.Disk, err)
		}
		observed[i].Stale = info.Block && o.Disk.BoundAnew || unused && info.Fingerprint != r.Fingerprint
	}
	return nil
}

// madeUnbound says that a copy of a device was made before its disk was bound.
// The receipt tells, so that a start need not look at the source.
func (o Observed) madeUnbound() bool {
	return o.Receipt.Device && o.Receipt.Fill == "" && o.Disk.Fill != ""
}

// GiveUpStale removes the copies that ObserveSources finds stale. It is for who
// binds disks, before the definition names the copies: a start in between would
// use what is there.
func (s *Service) GiveUpStale(ctx context.Context, disks []Disk) error {
	busy, release, err := s.lockDisks(disks)
	if err != nil {
		return err
	}
	defer release()
	observed, err := s.observe(ctx, disks, busy)
	if err != nil {
		return err
	}
	s.lookBelow(ctx, observed)
	if err := s.lookAtSources(ctx, observed); err != nil {
		return err
	}
	for _, o := range observed {
		if o.Busy || Decide(o).Action != Replace || o.Copy.State != Ready {
			continue
		}
		if err := s.giveUp(ctx, *o.Receipt); err != nil {
			return err
		}
	}
	return failpoint.Hit("stale.given-up")
}
