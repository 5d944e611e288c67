// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// RemoveImage hides an image at once; its data goes when no other image lies on it,
// after it was overwritten or discarded if the options ask for that.
// One that is being made is not made any further. One that is being removed already is
// fine, and may be asked to be overwritten as well. ErrInUse.
func (s *Service) RemoveImage(ctx context.Context, repoID, imageID string, o Options) error {
	if err := checkImageID(imageID); err != nil {
		return err
	}
	r, err := s.target(ctx, repoID, o)
	if err != nil {
		return err
	}
	defer r.close()
	r = r.freeing()
	err = r.change(ctx, func(u *update) error {
		img, again, err := s.removable(ctx, u, imageID, o)
		if err != nil || again {
			return err
		}
		if err := u.drop(ctx, format.Pin, imageID); err != nil {
			return err // those of an earlier boot
		}
		return u.hide(ctx, s.HostID, img, o.erasure())
	})
	if err != nil {
		return err
	}
	s.proceed(ctx, r, imageID, o)
	return nil
}

// removable returns an image that can be removed now, or why it cannot; again: that was done
// already, as it is asked for.
func (s *Service) removable(ctx context.Context, u *update, imageID string, o Options) (img *image, again bool, err error) {
	img, err = u.image(ctx, imageID)
	if err != nil || img.Weak && !img.leaves(o.erasure()) {
		return img, err == nil, err
	}
	if err := s.unused(ctx, u.repo, imageID); err != nil {
		return nil, false, err
	}
	cut, err := u.pendingCut(ctx, img)
	if err == nil && cut != "" {
		err = fmt.Errorf("image %s/%s: %w: snapshot %s of it is not done", u.id, imageID, ErrBusy, cut)
		err = failure.Hint(err, "`diskhook image status %s/%s`, or remove that first", u.id, cut)
	}
	return img, false, err
}

// hide makes an image weak, and whoever works on it stop.
func (u *update) hide(ctx context.Context, hostID string, img *image, erase *erasure) error {
	p := &plan{Nonce: uuid.NewString(), Verb: verbRemove, Stages: []string{stageSweep}, Erase: erase}
	if img.Plan != nil {
		p.Old, p.Erase = img.Plan.makes(), erase.and(img.Plan.Erase)
		stop := stopRequest{V: documentVersion, Plan: img.Plan.Nonce, Host: hostID}
		if err := u.put(ctx, format.Stop, img.ID, stop); err != nil {
			return err
		}
	}
	if img.Plan != nil && img.Plan.Verb == verbSnapshot {
		// Before the disk goes on elsewhere its volume is the disk's alone.
		if disk, err := u.image(ctx, img.Plan.Disk); err == nil && disk.Volume == img.Volume {
			img.Volume = ""
		}
	}
	if p.Erase != nil {
		p.Stages = []string{stageErase, stageSweep}
	}
	img.Weak = true
	return u.begin(ctx, img, p)
}

// ResizeVirtualDisk makes a disk larger; what is added reads zero. The same size is
// fine, a smaller one a failure.Usage. ErrInUse, ErrNotDisk.
func (s *Service) ResizeVirtualDisk(ctx context.Context, repoID, diskID string, size int64, o Options) error {
	if err := checkImageID(diskID); err != nil {
		return err
	}
	size, err := checkSize(size)
	if err != nil {
		return err
	}
	r, err := s.target(ctx, repoID, o)
	if err != nil {
		return err
	}
	defer r.close()
	grown := false
	err = r.change(ctx, func(u *update) error {
		disk, size, err := s.resizable(ctx, u, diskID, size)
		if err != nil {
			return err
		}
		if grown = size > disk.Size; !grown {
			return nil
		}
		return u.begin(ctx, disk, &plan{Nonce: uuid.NewString(), Verb: verbResize, Stages: []string{stageGrow}, Size: size})
	})
	if err == nil && grown {
		s.proceed(ctx, r, diskID, o)
	}
	return err
}

// resizable returns a disk that can be made of so many bytes now, and how many they are
// here; or why it cannot.
func (s *Service) resizable(ctx context.Context, u *update, diskID string, size int64) (*image, int64, error) {
	size = u.diskSize(size)
	disk, err := s.snapshottable(ctx, u, diskID) // what changes a disk asks the same of it
	if err != nil {
		return nil, 0, err
	}
	if size < disk.Size {
		return nil, 0, failure.New(failure.Usage, "image %s/%s: it has %d bytes, and cannot shrink to %d", u.id, diskID, disk.Size, size)
	}
	if size == disk.Size {
		return disk, size, nil
	}
	top, err := u.volume(ctx, disk.Volume)
	if err != nil {
		return nil, 0, err
	}
	if err := u.fits(ctx, top.Format, size); err != nil {
		return nil, 0, err
	}
	more := u.empty(top.Format, size) - u.empty(top.Format, disk.Size)
	return disk, size, u.room(ctx, more, "to grow the disk")
}

// SetUserData replaces what callers keep with an image.
func (s *Service) SetUserData(ctx context.Context, repoID, imageID string, userData json.RawMessage) error {
	return s.annotate(ctx, repoID, imageID, userData, nil)
}

func (s *Service) annotate(ctx context.Context, repoID, imageID string, userData json.RawMessage, only *rehearsal) error {
	if err := checkImageID(imageID); err != nil {
		return err
	}
	userData, err := checkUserData(userData)
	if err != nil {
		return err
	}
	r, err := s.target(ctx, repoID, Options{rehearsal: only})
	if err != nil {
		return err
	}
	defer r.close()
	return r.change(ctx, func(u *update) error {
		img, err := u.visible(ctx, imageID)
		if err != nil {
			return err
		}
		img.UserData = userData
		return u.saveImage(ctx, img)
	})
}
