// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"slices"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// Definitions get cloned, renamed, edited and moved, and their metadata with
// them. What the metadata say is acted on only if it was written for this
// domain, and if the disks still are what was recorded. (That the machine is
// the right one is localdisk's to check, where the receipt can say so too.)

// SameDomain refuses metadata that were written for another domain:
// virt-clone copies them. Every binding in them is void.
func SameDomain(d Domain) error {
	if d.Metadata == nil || d.Metadata.Domain == d.UUID {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: its disks were bound for the domain %s, of which this seems to be a clone", d, failure.OneLine(clip(d.Metadata.Domain)))
	return failure.Hint(err, "run `diskhook domain rebind %s` to give it copies of its own, or `diskhook domain unbind %s`", d.NameArg(), d.NameArg())
}

// headerTimeout bounds how long a start looks for our copy below a snapshot.
const headerTimeout = 10 * time.Second

// Undrifted checks that the disks still have the source that was recorded. A
// disk whose chain ends at it (an external snapshot) is fine; any other is
// refused.
func (h *Host) Undrifted(ctx context.Context, d Domain, bound []Bound) error {
	for _, b := range bound {
		if b.Recorded == nil {
			continue
		}
		if err := h.undrifted(ctx, d, b); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) undrifted(ctx context.Context, d Domain, b Bound) error {
	target, source := b.Disk.Target, b.Recorded.Source
	if kind, _, known := recordedKind(*b.Recorded); known {
		own, err := kind.Source(h, d, *b.Recorded)
		switch {
		case err != nil:
			return err
		case source != own:
			return drifted(d, target, own, "the metadata say "+failure.OneLine(clip(source)))
		}
	}
	if b.Disk.At() == source || slices.ContainsFunc(b.Disk.Chain, func(l imagecheck.Layer) bool { return l.Path == source }) {
		return nil
	}
	if b.Disk.Path == "" || b.Disk.Complete {
		return h.pivoting(d, b, drifted(d, target, source, "it is now "+describe(b.Disk)))
	}
	reached, err := h.reaches(ctx, b.Disk, source)
	if err != nil {
		h.Log.Warn("drift: image headers", "domain", d.UUID, "disk", target, "err", err)
	}
	if !reached {
		return h.pivoting(d, b, drifted(d, target, source, "it is now "+describe(b.Disk)))
	}
	return nil
}

// pivoting is the way out of a drift that comes from libvirt itself: it writes
// into the definition what a running domain went over to.
func (h *Host) pivoting(d Domain, b Bound, err error) error {
	r, unread := localdisk.ReadReceipt(h.Layout, d.UUID, b.Disk.Target)
	if unread != nil || r == nil || r.Pivot == nil {
		return err
	}
	return failure.Hint(err, "run `diskhook local settle --raw %s %s`, which was interrupted, then start again", d.NameArg(), b.Disk.Target)
}

var errReached = errors.New("reached our copy")

// reaches walks down the image headers below the disk until it meets path,
// which itself need not be there yet.
func (h *Host) reaches(ctx context.Context, d Disk, path string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	layers := d.Layers()
	_, err := imagecheck.Discover(ctx, layers[len(layers)-1], func(p string) (string, error) {
		if p == path {
			return "", errReached
		}
		return h.Config.Paths.Allowed(p)
	})
	if errors.Is(err, errReached) {
		return true, nil
	}
	return false, err
}

func describe(d Disk) string {
	if d.At() == "" {
		return "something else"
	}
	return failure.OneLine(d.At())
}

func drifted(d Domain, target, want, is string) error {
	err := failure.New(failure.Conflict, "%s: disk %s: its source was %s when it was bound, %s", d, failure.OneLine(clip(target)), want, is)
	return failure.Hint(err, "put the source back with `virsh edit %s`, or accept it with `diskhook domain apply --refresh %s`", d.NameArg(), d.NameArg())
}
