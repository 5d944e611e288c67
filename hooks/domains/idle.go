// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// idle refuses to change a binding while somebody works on a copy of one of
// the targets. A copy process knows nothing of definitions: it would go on, and
// leave a complete copy of a disk that is not bound to it any more.
func (s *Service) idle(ctx context.Context, d Domain, targets []string) error {
	disks := lockable(d, targets)
	// Before the locks: a copy process takes its lock, then removes its job.
	starting := map[string]bool{}
	for _, disk := range disks {
		var err error
		if starting[disk.Target], err = s.Local.Starting(d.UUID, disk.Key()); err != nil {
			return fmt.Errorf("%s: %w", disk, err)
		}
	}
	observed, err := s.Local.Observe(ctx, disks)
	if err != nil {
		return err
	}
	for _, o := range observed {
		if o.Busy || starting[o.Disk.Target] {
			err := failure.New(failure.Temporary, "%s: its local copy is being made, or somebody else works on it", o.Disk)
			return failure.Hint(err, "stop that with `diskhook local cancel %[1]s %[2]s`, or wait for its end with `diskhook local status --watch %[1]s`, then run this again", d.NameArg(), o.Disk.Target)
		}
	}
	return nil
}

// quiet is idle for who is about to change the binding, under the domain's
// lock. A copy process that was taken for dead, and begins after all, finds
// nothing to do from here on; one that did so a moment ago is seen at work.
func (s *Service) quiet(ctx context.Context, d Domain, targets []string) error {
	if err := s.idle(ctx, d, targets); err != nil {
		return err
	}
	for _, disk := range lockable(d, targets) {
		if err := s.Local.Withdraw(d.UUID, disk.Key()); err != nil {
			return fmt.Errorf("%s: %w", disk, err)
		}
	}
	return s.idle(ctx, d, targets)
}

// lockable are the disks of those targets that can have a copy. There is one
// lock for a disk, whatever its copy is made on; so the backend is one that is
// on every host, even if the binding's is not.
func lockable(d Domain, targets []string) []localdisk.Disk {
	var disks []localdisk.Disk
	for _, target := range targets {
		disk := localdisk.Disk{Domain: d.UUID, DomainName: d.Name, Target: target, Backend: "dir", OnStop: localdisk.Keep}
		if disk.Validate() == nil {
			disks = append(disks, disk)
		}
	}
	return disks
}

// targets are those of all disks that the definition or its metadata name.
func (d Domain) targets() []string {
	var all []string
	for _, disk := range d.Disks {
		all = append(all, disk.Target)
	}
	if d.Metadata != nil {
		for _, e := range d.Metadata.Disks {
			if _, there := d.Disk(e.Target); !there {
				all = append(all, e.Target)
			}
		}
	}
	return all
}
