// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/repository"
)

// What a host does with images while domains have them.

// Fulfil prepares the images one after the other, all of them by the deadline. What
// was prepared before one failed is given back, as far as that can be done at once:
// libvirt asks for the release of a start that failed anyway.
func (k image) Fulfil(ctx context.Context, h *Host, d Domain, bound []Bound, deadline time.Duration) ([]Placement, error) {
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	if err := apart(d, bound); err != nil {
		return nil, err
	}
	var placed []Placement
	for i, b := range bound {
		p, err := k.fulfil(ctx, h, d, b)
		if err != nil {
			k.undo(ctx, h, d, bound[:i+1], b, err)
			return nil, k.refused(d, b, err)
		}
		placed = append(placed, p)
	}
	return placed, nil
}

// undo gives back what was prepared before why. A repository that does not answer
// has had all the time that there was.
func (k image) undo(ctx context.Context, h *Host, d Domain, prepared []Bound, failed Bound, why error) {
	if errors.Is(why, command.ErrNoAnswer) || errors.Is(why, repository.ErrUnreachable) {
		prepared = slices.DeleteFunc(slices.Clone(prepared), func(b Bound) bool { return b.Binding.Options["repo"] == failed.Binding.Options["repo"] })
		if err := unlinkImage(h.Layout, d.UUID, failed.Disk.Target); err != nil {
			h.Log.Warn("undo", "domain", d.UUID, "err", err)
		}
	}
	if err := k.giveBack(context.WithoutCancel(ctx), h, d, prepared, undoTime); err != nil {
		h.Log.Warn("undo", "domain", d.UUID, "err", err)
	}
}

func (k image) fulfil(ctx context.Context, h *Host, d Domain, b Bound) (Placement, error) {
	prepared, err := ask(ctx, h, func(ctx context.Context, i Images) (repository.Prepared, error) {
		return i.PrepareImage(ctx, b.Binding.Options["repo"], b.Binding.Value, preparing(d, b.Disk))
	})
	if err != nil {
		return Placement{}, err
	}
	link := imageLink(h.Layout, d.UUID, b.Disk.Target)
	if err := k.suits(d, b, link, prepared); err != nil {
		return Placement{}, err
	}
	if err := linkImage(h.Layout, d.UUID, b.Disk.Target, prepared.Layers); err != nil {
		return Placement{}, err
	}
	return Placement{b.Disk.Target, link, isDevice(prepared.Path)}, nil
}

// Relink makes missing links again. An image that is not the domain's any more is
// left alone: to prepare it again might move it from under the guest.
func (k image) Relink(ctx context.Context, h *Host, d Domain, bound []Bound, _ time.Duration) error {
	return errors.Join(each(bound, func(b Bound) error {
		at, err := preview(ctx, h, b.Binding, preparing(d, b.Disk))
		if err == nil && !at.Held {
			err = failure.New(failure.Conflict, "image %s: it was released while the domain runs on it, and may be changed by others", imageOf(b.Binding))
			err = failure.Hint(err, "shut the domain down and start it again")
		}
		if err == nil {
			err = linkImage(h.Layout, d.UUID, b.Disk.Target, at.Layers)
		}
		if err != nil {
			return k.refused(d, b, err)
		}
		return nil
	})...)
}

// each does the work for all disks at once: one repository that hangs holds up no
// other.
func each(bound []Bound, work func(Bound) error) []error {
	failed := make([]error, len(bound))
	var all sync.WaitGroup
	for i, b := range bound {
		all.Go(func() { failed[i] = work(b) })
	}
	all.Wait()
	return failed
}

func (image) Labelled() bool { return true }

// Own gives the image and those below it to QEMU.
func (image) Own(_ context.Context, h *Host, d Domain, bound []Bound, label Label) error {
	if !label.Owned {
		return nil
	}
	for _, b := range bound {
		if err := ownImage(h.Layout, d.UUID, b.Disk.Target, label.UID, label.GID); err != nil {
			return fmt.Errorf("%s: disk %s: %w", d, b.Disk.Target, err)
		}
	}
	return nil
}

// How long a repository may take to take images back: at a domain's end, for which
// libvirt waits, and at a start that failed, whose deadline may be over.
const (
	releaseTime = 20 * time.Second
	undoTime    = 5 * time.Second
)

// Release gives the images back. All are tried. One whose repository does not
// answer stays the domain's until it starts and ends again, or the host does.
func (k image) Release(ctx context.Context, h *Host, d Domain, bound []Bound, _ string) error {
	return k.giveBack(ctx, h, d, bound, releaseTime)
}

func (image) giveBack(ctx context.Context, h *Host, d Domain, bound []Bound, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return errors.Join(each(bound, func(b Bound) error {
		unlinked := unlinkImage(h.Layout, d.UUID, b.Disk.Target)
		_, err := ask(ctx, h, func(ctx context.Context, i Images) (struct{}, error) {
			return struct{}{}, i.ReleaseImage(ctx, b.Binding.Options["repo"], b.Binding.Value, d.UUID)
		})
		if err != nil {
			err = fmt.Errorf("disk %s: image %s: %w", b.Disk.Target, imageOf(b.Binding), err)
			err = failure.Hint(err, "once its repository answers: `diskhook image release --holder %s %s`", d.UUID, imageOf(b.Binding))
		}
		return errors.Join(unlinked, err)
	})...)
}

// ReleaseImages gives back images of disks that were unplugged before the domain
// ended: its metadata name them still.
func (h *Host) ReleaseImages(ctx context.Context, d Domain) error {
	if d.Metadata == nil {
		return nil
	}
	var unplugged []Bound
	for _, entry := range d.Metadata.Disks {
		if _, there := d.Disk(entry.Target); there || entry.Image == nil {
			continue
		}
		if b, err := fromMetadata(d, &entry); err == nil {
			unplugged = append(unplugged, Bound{Disk: Disk{Target: entry.Target}, Binding: b})
		}
	}
	return image{}.Release(ctx, h, d, unplugged, "")
}
