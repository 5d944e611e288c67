// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// Verbs on copies that the metadata of a domain speak of, too. On a host of
// oVirt, and where libvirt cannot be asked, there are no such metadata, and
// only the copy changes.

// Prestage fills the disks' copies and notes them in the metadata. A copy that
// no guest used, and whose source was written to since, is made again.
func (s *Service) Prestage(ctx context.Context, disks []localdisk.Disk, w localdisk.Waiting) error {
	if err := s.fillable(disks); err != nil || len(disks) == 0 {
		return err
	}
	observed, err := s.Local.ObserveSources(ctx, disks)
	if err != nil {
		return err
	}
	var anew []string
	for i, o := range observed {
		switch localdisk.Decide(o).Action {
		case localdisk.Create, localdisk.Replace, localdisk.Retire:
			anew = append(anew, o.Disk.Target)
			disks[i].Copy = "" // that of the new one is not known yet
		}
	}
	if err := s.Local.Prestage(ctx, disks, w); err != nil {
		return err
	}
	return s.note(ctx, disks[0].Domain, anew...)
}

// Recreate gives the copy of a disk up, as g says, and fills a new one.
func (s *Service) Recreate(ctx context.Context, disk localdisk.Disk, g localdisk.GiveUp, w localdisk.Waiting) error {
	if err := s.MayChange(ctx, disk.Domain, disk.Target); err != nil {
		return err
	}
	if err := s.Local.Recreate(ctx, disk, g, w); err != nil {
		return err
	}
	return s.note(ctx, disk.Domain, disk.Target)
}

// Rediscover looks up again what lies below a disk's source.
func (s *Service) Rediscover(ctx context.Context, disk localdisk.Disk) (localdisk.Disk, error) {
	source, err := s.Host.Discover(ctx, disk, disk.Source[0])
	if err != nil {
		return disk, fmt.Errorf("%s: its source: %w", disk, err)
	}
	disk.Source = source
	return disk, nil
}

// Remove gives the copy of a disk up, as g says.
func (s *Service) Remove(ctx context.Context, domain, key string, g localdisk.GiveUp) error {
	if err := s.MayChange(ctx, domain, key); err != nil {
		return err
	}
	if err := s.Local.Remove(ctx, domain, key, g); err != nil {
		return err
	}
	return s.note(ctx, domain, key)
}

// MayChange refuses to replace a copy of a domain that libvirt says must not be
// touched. That libvirt cannot be asked, or does not know the domain, is no
// reason: the copy's own checks remain.
func (s *Service) MayChange(ctx context.Context, domain, target string) error {
	d, asked := s.ask(ctx, domain)
	if !asked || d.entry(target) == nil {
		return nil
	}
	return s.untouchable(d)
}

// note records copies where there are metadata to record them in.
func (s *Service) note(ctx context.Context, domain string, anew ...string) error {
	if d, asked := s.ask(ctx, domain); !asked || d.Metadata == nil {
		return nil
	}
	return s.Record(ctx, domain, anew...)
}

// ask looks a domain up if that can be done.
func (s *Service) ask(ctx context.Context, domain string) (Domain, bool) {
	if s.Libvirt.URI == "" {
		return Domain{}, false
	}
	d, err := s.Look(ctx, domain)
	if err != nil {
		if failure.KindOf(err) != failure.NotFound {
			s.Host.Log.Warn("libvirt was not asked", "domain", domain, "err", err)
		}
		return d, false
	}
	return d, true
}
