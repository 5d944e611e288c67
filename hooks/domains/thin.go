// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// What verbs on definitions have to know of volumes of thin clusters.

// thinFits refuses a volume that is not there, that another domain of this host is
// bound to, and to put one in the place of a disk that is something else: nobody
// knows whether the volume holds what that holds. Which domains of other hosts are
// bound to it nobody knows either; only one of them can have it attached.
func (s *Service) thinFits(ctx context.Context, d Domain, bound []bindings.Bound, others []Facts) error {
	for _, b := range bound {
		if b.Binding.Kind != "thin" {
			continue
		}
		if err := notThinOf(d, b, others); err != nil {
			return err
		}
		same, err := s.isThin(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		if !same {
			return s.notThin(d, b)
		}
		if _, err := withPatience(ctx, func() (struct{}, error) { return struct{}{}, s.Host.ThinThere(ctx, b) }); err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
	}
	return nil
}

// notThin refuses a disk that has data of its own.
func (s *Service) notThin(d Domain, b bindings.Bound) error {
	cluster, volume := b.Binding.Option("cluster", ""), b.Binding.Value
	path, err := s.Host.ThinAt(b)
	if err != nil {
		return err
	}
	err = failure.New(failure.Conflict, "%s: disk %s is %s, and nobody knows whether %s holds what that holds", d, b.Disk.Target, describeSource(b), b.Kept())
	return failure.Hint(err, "copy it with `diskhook thin attach --cluster %[1]s %[2]s`, `qemu-img convert -n -f %[3]s -O raw %[4]s %[5]s` and `diskhook thin detach --cluster %[1]s %[2]s`, or go without it; then set the disk's source to %[6]s with `virsh edit %[7]s`, and run this again",
		cluster, volume, b.Disk.Format, describeSource(b), path, s.Host.ThinLink(d.Domain, b.Disk.Target), d.NameArg())
}

// isThin says whether the disk is the volume by another name, or nothing that could
// hold data.
func (s *Service) isThin(ctx context.Context, b bindings.Bound) (bool, error) {
	path, err := s.Host.ThinAt(b)
	if err != nil || b.Disk.Path == "" {
		return b.Disk.Socket == "", err
	}
	return withPatience(ctx, func() (bool, error) {
		now, err := os.Stat(b.Disk.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		volume, err := os.Stat(path)
		return err == nil && os.SameFile(now, volume), nil
	})
}

// notThinOf refuses a volume that another domain of this host is bound to.
func notThinOf(d Domain, b bindings.Bound, others []Facts) error {
	for _, other := range others {
		doc, err := xmlrewrite.Parse([]byte(other.XML))
		if other.UUID == d.UUID || err != nil {
			continue // libvirt's own output, of a domain that is not ours to judge
		}
		metadata, err := doc.Metadata()
		if err != nil || metadata == nil || metadata.Domain != other.UUID {
			continue
		}
		for _, e := range metadata.Disks {
			if e.Thin == nil || bindings.KeptBy(e) != b.Kept() {
				continue
			}
			err := failure.New(failure.Conflict, "%s: disk %s: %s is disk %s of domain %s", d, b.Disk.Target, b.Kept(), failure.OneLine(e.Target), failure.OneLine(other.Name))
			return failure.Hint(err, "give one of both a volume of its own, as `diskhook thin clone --cluster %s %s NEW` makes it", b.Binding.Option("cluster", ""), b.Binding.Value)
		}
	}
	return nil
}
