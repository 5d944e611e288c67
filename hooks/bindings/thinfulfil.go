// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/thin/member"
)

// What a host does with thin volumes while domains have them.

// Fulfil attaches the volumes, one after the other: each is put into the metadata of
// the host's one pool. What was attached before one failed is given back, as far as
// that can be done at once: libvirt asks for the release of a start that failed anyway.
func (k thin) Fulfil(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) ([]Placement, error) {
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	if h.Thin == nil {
		return nil, errNoClusters
	}
	if err := apart(d, bound); err != nil {
		return nil, err
	}
	var placed []Placement
	for i, b := range bound {
		p, err := k.fulfil(ctx, h, d, b)
		if err == nil {
			placed = append(placed, p)
			continue
		}
		if errors.Is(err, command.ErrNoAnswer) { // nor would it take anything back
			bound = bound[:i]
		} else {
			bound = bound[:i+1]
		}
		if undo := k.giveBack(context.WithoutCancel(ctx), h, d, bound, undoTime); undo != nil {
			h.Log.Warn("undo", "domain", d.UUID, "err", undo)
		}
		return nil, k.refused(d, b, err)
	}
	return placed, nil
}

// fulfil looks first, which a LUN that hangs does not answer and which is given up
// then. What follows is not: to leave it in the middle would leave the guests of the
// host's other volumes suspended.
func (k thin) fulfil(ctx context.Context, h *Host, d Domain, b Bound) (Placement, error) {
	link := thinLink(h.Layout, d.UUID, b.Disk.Target)
	if err := k.suits(d, b, link); err != nil {
		return Placement{}, err
	}
	if _, err := h.previewThin(ctx, d, b); err != nil {
		return Placement{}, err
	}
	path, err := h.Thin.Claim(ctx, b.Binding.Options["cluster"], b.Binding.Value, d.UUID)
	if err != nil {
		return Placement{}, err
	}
	return Placement{b.Disk.Target, link, true}, linkThin(h.Layout, d.UUID, b.Disk.Target, path)
}

func (h *Host) previewThin(ctx context.Context, d Domain, b Bound) (member.Preview, error) {
	return command.Abandon(ctx, func() (member.Preview, error) {
		return h.Thin.Preview(ctx, b.Binding.Options["cluster"], b.Binding.Value, d.UUID)
	})
}

// refused says why a disk does not get its volume, always with a way out.
func (thin) refused(d Domain, b Bound, err error) error {
	cluster := b.Binding.Options["cluster"]
	switch {
	case errors.Is(err, command.ErrNoAnswer):
		err = fmt.Errorf("volume %s: %w", thinOf(b.Binding), err)
		err = failure.Hint(err, "look after the disk of cluster %s (`diskhook thin status --cluster %s` answers when it does), then start again", cluster, cluster)
	case failure.HintOf(err) == "":
		err = failure.Hint(err, "see `diskhook thin status --cluster %s`", cluster)
	}
	return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
}

// Relink makes missing links again, and claims that are gone. A volume that is not here
// any more is left alone: whoever has it now may write to it.
func (k thin) Relink(ctx context.Context, h *Host, d Domain, bound []Bound, _ time.Duration) error {
	if h.Thin == nil {
		return errNoClusters
	}
	return errors.Join(each(bound, func(b Bound) error {
		cluster, volume := b.Binding.Options["cluster"], b.Binding.Value
		_, err := command.Abandon(ctx, func() (struct{}, error) {
			return struct{}{}, h.Thin.Reclaim(ctx, cluster, volume, d.UUID)
		})
		if err == nil {
			err = linkThin(h.Layout, d.UUID, b.Disk.Target, h.Thin.Path(cluster, volume))
		}
		if err != nil {
			return k.refused(d, b, err)
		}
		return nil
	})...)
}

func (thin) Labelled() bool { return true }

// Own gives the devices to QEMU.
func (thin) Own(_ context.Context, h *Host, d Domain, bound []Bound, label Label) error {
	if !label.Owned {
		return nil
	}
	for _, b := range bound {
		if err := os.Chown(thinLink(h.Layout, d.UUID, b.Disk.Target), label.UID, label.GID); err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
	}
	return nil
}

// Release gives the volumes back. All are tried. One that cannot be detached now is
// not the domain's any more, and the host's monitor detaches it.
func (k thin) Release(ctx context.Context, h *Host, d Domain, bound []Bound, _ string) error {
	return k.giveBack(ctx, h, d, bound, releaseTime)
}

func (k thin) giveBack(ctx context.Context, h *Host, d Domain, bound []Bound, within time.Duration) error {
	if h.Thin == nil {
		return errNoClusters
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var failed []error
	for _, b := range bound {
		if err := unlinkThin(h.Layout, d.UUID, b.Disk.Target); err != nil {
			failed = append(failed, fmt.Errorf("disk %s: %w", b.Disk.Target, err))
		}
		if err := h.Thin.Release(ctx, b.Binding.Options["cluster"], b.Binding.Value, d.UUID); err != nil {
			failed = append(failed, fmt.Errorf("disk %s: volume %s: %w", b.Disk.Target, thinOf(b.Binding), err))
		}
	}
	return errors.Join(failed...)
}

// ReleaseThin gives back what a domain that has gone still has: volumes of disks
// that were unplugged before it ended.
func (h *Host) ReleaseThin(ctx context.Context, d Domain) error {
	if h.Thin == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	return errors.Join(unlinkAllThin(h.Layout, d.UUID), h.Thin.ReleaseRest(ctx, d.UUID))
}
