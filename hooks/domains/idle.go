// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// idle refuses to change a binding while somebody works on a copy of one of
// the targets. A copy process knows nothing of definitions: it would go on, and
// leave a complete copy of a disk that is not bound to it any more.
func (s *Service) idle(ctx context.Context, d Domain, targets []string) error {
	var disks []localdisk.Disk
	for _, target := range targets {
		// There is one lock for a disk, whatever its copy is made on. So the
		// backend is one that is on every host, even if the binding's is not.
		disk := localdisk.Disk{Domain: d.UUID, DomainName: d.Name, Target: target, Backend: "dir", OnStop: localdisk.Keep}
		if disk.Validate() == nil { // else it can have no lock either
			disks = append(disks, disk)
		}
	}
	observed, err := s.Local.Observe(ctx, disks)
	if err != nil {
		return err
	}
	for _, o := range observed {
		if !o.Busy {
			continue
		}
		err := failure.New(failure.Temporary, "%s: its local copy is being made, or somebody else works on it", o.Disk)
		return failure.Hint(err, "stop that with `diskhook local cancel %[1]s %[2]s`, or wait for its end with `diskhook local status --watch %[1]s`, then run this again", d.NameArg(), o.Disk.Target)
	}
	return nil
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
