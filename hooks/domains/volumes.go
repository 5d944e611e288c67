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
)

// What verbs on definitions have to know of managed volumes.

// volumesFit refuses a volume that another domain has, and to put one in the
// place of a disk that is something else: nobody knows whether the volume holds
// what that holds.
func (s *Service) volumesFit(ctx context.Context, d Domain, bound []bindings.Bound, others []Facts) error {
	for _, b := range bound {
		if b.Binding.Kind != "volume" {
			continue
		}
		id := b.Binding.Value
		link := s.Host.Volumes.Link(id)
		for _, other := range others {
			if other.UUID == d.UUID {
				continue
			}
			for _, h := range s.holdings(other) {
				if len(h.chain) > 0 && h.chain[0].Path == link {
					err := failure.New(failure.Conflict, "%s: disk %s: volume %s is disk %s of the %s", d, b.Disk.Target, id, h.target, h.domain)
					return failure.Hint(err, "give one of both a volume of its own, then run this again")
				}
			}
		}
		same, err := s.isVolumes(ctx, b, link)
		if err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
		if !same {
			err := failure.New(failure.Conflict, "%s: disk %s is %s, and nobody knows whether volume %s holds what that holds", d, b.Disk.Target, describeSource(b), id)
			return failure.Hint(err, "copy it with `diskhook volume attach %s` and `qemu-img convert -n -f %s -O raw %s %s`, set the disk's source to %s with `virsh edit %s`, then run this again",
				id, b.Disk.Format, describeSource(b), link, link, d.NameArg())
		}
	}
	return nil
}

func describeSource(b bindings.Bound) string { return failure.OneLine(b.Disk.At()) }

// isVolumes says whether the disk is the volume by another name, or nothing
// that could hold data.
func (s *Service) isVolumes(ctx context.Context, b bindings.Bound, link string) (bool, error) {
	if b.Disk.Path == "" || b.Disk.Path == link {
		return b.Disk.Path == link || b.Disk.Socket == "", nil
	}
	return withPatience(ctx, func() (bool, error) {
		now, err := os.Stat(b.Disk.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		volume, err := os.Stat(link)
		return err == nil && os.SameFile(now, volume), nil
	})
}
