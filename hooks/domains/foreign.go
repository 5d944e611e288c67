// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// A bound disk whose source was edited to another image is as good as not
// bound: to accept that image is a first apply of it.

// foreign are the bound disks whose source is neither their copy nor an image
// on top of it. They come without what was recorded, as disks bound anew. One
// whose source cannot be bound, or whose copy has what a guest wrote, is
// refused: the copy was made of something else.
func (s *Service) foreign(ctx context.Context, d Domain, bound []bindings.Bound, receipts map[string]localdisk.Receipt) ([]bindings.Bound, error) {
	var found []bindings.Bound
	for _, b := range bound {
		if b.Recorded != nil && b.Kept() != "" && b.Disk.At() != b.Recorded.Source && s.Host.Undrifted(ctx, d.Domain, []bindings.Bound{b}) == nil {
			return nil, notAbove(d, b)
		}
		if b.Recorded == nil || b.Recorded.Local == nil {
			continue // a replica set has what the guest wrote, whatever the source is now
		}
		stable := localdisk.StablePath(s.Host.Layout, d.UUID, b.Disk.Target)
		if b.Disk.Path == stable {
			continue
		}
		// What the metadata say the path is may have been edited, too.
		own := *b.Recorded
		own.Source = stable
		b.Recorded = &own
		if err := s.noOverlay(ctx, d, b); err != nil {
			return nil, err
		}
		if err := s.acceptable(d, b.Disk, stable, receipts); err != nil {
			return nil, err
		}
		if s.disguised(ctx, b.Disk) {
			err := failure.New(failure.Precondition, "%s: disk %s: %s is a qcow2 image, but the definition says raw", d, b.Disk.Target, failure.OneLine(b.Disk.Path))
			return nil, failure.Hint(err, "set type='qcow2' in the disk's <driver> with `virsh edit %s`, then run this again", d.NameArg())
		}
		b.Recorded = nil
		found = append(found, b)
	}
	return found, nil
}

// acceptable refuses a source that cannot stand for what a disk was bound from.
func (s *Service) acceptable(d Domain, disk bindings.Disk, stable string, receipts map[string]localdisk.Receipt) error {
	back := fmt.Sprintf("put the source %s back with `virsh edit %s`", stable, d.NameArg())
	command := func(option string) string {
		return fmt.Sprintf("diskhook domain revert %s %s %s", option, d.NameArg(), disk.Target)
	}
	r, filled := receipts[disk.Target]
	if filled && r.Used && !r.Discarding {
		err := failure.New(failure.Conflict, "%s: disk %s: its source is %s now, but what the guest wrote is in its local copy, which was made of something else", d, disk.Target, failure.OneLine(disk.Path))
		return failure.Hint(err, "%s; or save what the guest wrote with `%s`, or give it up with `%s`, then bind the new source with `diskhook domain apply --local %s=%s %s`",
			back, command("--export FILE"), command("--discard-guest-data"), disk.Target, r.Backend, d.NameArg())
	}
	if err := s.knownHere(d, disk.Target, filled, command("--discard-guest-data")); err != nil {
		return err
	}
	if disk.Unfit != "" {
		err := failure.New(failure.Conflict, "%s: disk %s: it is not what was bound any more, and cannot be bound as it is: %s", d, disk.Target, disk.Unfit)
		return failure.Hint(err, "%s", back)
	}
	return nil
}

// disguised says that a source is declared raw, but begins as a qcow2 image
// does. A bound disk is raw, so who edits its path alone declares that without
// a word. What cannot be read is left to the checks of the chain.
func (s *Service) disguised(ctx context.Context, disk bindings.Disk) bool {
	path, err := s.Host.Config.Paths.Allowed(disk.Path)
	if err != nil || disk.Format != imagecheck.Raw {
		return false
	}
	is, err := withPatience(ctx, func() (bool, error) {
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO does not block then
		if err != nil {
			return false, err
		}
		defer f.Close()
		var magic [4]byte
		_, err = f.ReadAt(magic[:], 0)
		return string(magic[:]) == "QFI\xfb", err // qcow2's, QEMU's docs/interop/qcow2.rst
	})
	return err == nil && is
}
