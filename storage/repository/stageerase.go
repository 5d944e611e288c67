// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/repository/format"
)

// erasure is what somebody who removed an image wants to become of its data. It stays
// with the document of each volume that has some, so that whoever deletes that one day
// does it first.
type erasure struct {
	format.Erasure
	// Done says that the volume is erased. One that is being erased is not complete,
	// and no image points to it for long: nobody begins to use it.
	Done bool `json:"done,omitempty"`
}

// pending says that there still is something to do.
func (e *erasure) pending() bool { return e != nil && !e.Done }

// and is what both ask for, either of which may ask for nothing.
func (e *erasure) and(other *erasure) *erasure {
	switch {
	case e == nil:
		return other
	case other == nil:
		return e
	}
	both := format.Erasure{Zero: e.Zero || other.Zero, Discard: e.Discard || other.Discard}
	return &erasure{both, e.Done && e.Erasure == both || other.Done && other.Erasure == both}
}

// leaves says that a removal which is planned does not do what is asked for.
func (img *image) leaves(asked *erasure) bool {
	if asked == nil {
		return false
	}
	return img.Plan == nil || img.Plan.Erase == nil || img.Plan.Erase.and(asked).Erasure != img.Plan.Erase.Erasure
}

// erase overwrites or discards the volumes that sweep deletes then, and notes on those
// that others still need that it has to be done with them as well.
func (w *worker) erase(ctx context.Context) error {
	v, err := w.repo.scan(ctx)
	if err != nil {
		return err
	}
	images, volumes := v.garbage(w.id)
	images, volumes = v.related(w.img, images, volumes)
	var sealed []*volume
	err = w.repo.change(ctx, func(u *update) error {
		img, err := w.current(ctx)
		if err != nil {
			return err
		}
		if err := u.refresh(ctx, v, images, volumes); err != nil {
			return err
		}
		if err := u.wish(ctx, v, img); err != nil || len(v.damaged) > 0 {
			return err // what a damaged document needs nobody knows
		}
		_, volumes := v.unneeded(images, volumes, img.ID)
		sealed, err = u.seal(ctx, v, volumes)
		return err
	})
	if err != nil {
		return err
	}
	return w.repo.eraseAll(ctx, sealed, w.progress)
}

// wish notes what has to become of the volumes that a removed image leaves. Those that
// are another image's are that one's business.
func (u *update) wish(ctx context.Context, v *view, img *image) error {
	theirs := map[string]bool{}
	for _, other := range v.images {
		if !other.Weak {
			theirs[other.Volume] = true
		}
	}
	for _, id := range sorted(v.near(img)) {
		if v.volumes[id] == nil || theirs[id] {
			continue
		}
		vol, err := u.volume(ctx, id) // the view may be older than a merge that goes on
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		v.volumes[id] = vol
		wanted := img.Plan.Erase.and(vol.Erase)
		if vol.Erase != nil && *wanted == *vol.Erase {
			continue
		}
		vol.Erase = wanted
		if err := u.saveVolume(ctx, vol); err != nil {
			return err
		}
	}
	return failpoint.Hit("repository.erase.wish")
}

// seal lets nobody begin to use volumes that nobody needs and that have to be erased, and
// returns them. It is asked under the lock under which they were found to be unneeded.
func (u *update) seal(ctx context.Context, v *view, volumes []string) ([]*volume, error) {
	var sealed []*volume
	for _, id := range volumes {
		vol := v.volumes[id]
		if !vol.Erase.pending() {
			continue
		}
		if vol.Complete {
			vol.Complete = false
			if err := u.saveVolume(ctx, vol); err != nil {
				return nil, err
			}
			if err := failpoint.Hit("repository.erase.sealed"); err != nil {
				return nil, err
			}
		}
		sealed = append(sealed, vol)
	}
	return sealed, nil
}

// eraseAll erases volumes that were sealed, one after the other. There is no deadline
// to that; progress is of the one that it is at.
func (r *repo) eraseAll(ctx context.Context, sealed []*volume, progress func(done, total int64)) error {
	for _, v := range sealed {
		if err := r.eraseVolume(ctx, v, progress); err != nil {
			return fmt.Errorf("volume %s/%s: %w", r.id, v.ID, err)
		}
	}
	return nil
}

func (r *repo) eraseVolume(ctx context.Context, v *volume, progress func(done, total int64)) error {
	l, err := r.lockVolume(ctx, v.ID)
	if err != nil {
		return err
	}
	defer l.Release()
	r.attached.add(format.Data{ID: v.ID, Kind: v.Format})
	_, err = command.Abandon(ctx, func() (struct{}, error) {
		return struct{}{}, r.place.Erase(ctx, v.ID, v.Format, v.Erase.Erasure, progress)
	})
	if err != nil {
		return err
	}
	if err := failpoint.Hit("repository.erase.erased"); err != nil {
		return err
	}
	return r.change(ctx, func(u *update) error {
		now, err := u.volume(ctx, v.ID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody else was faster
		}
		if err == nil && !now.Complete && now.Erase != nil {
			now.Erase.Done = now.Erase.Erasure == v.Erase.Erasure
			err = u.saveVolume(ctx, now)
		}
		return err
	})
}

// near are the volumes that an image and its plan name, and all below those.
func (v *view) near(img *image) map[string]bool {
	near := map[string]bool{}
	for _, id := range append(slices.Clip(img.Plan.makes()), img.Volume) {
		for ; id != "" && !near[id]; id = v.below(id) {
			near[id] = true
		}
	}
	return near
}
