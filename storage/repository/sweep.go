// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/repository/format"
)

// sweep removes what the plan left behind: the image itself if it was removed, the volumes
// that it had, and below them what nobody else needs.
func (w *worker) sweep(ctx context.Context) error {
	if w.img.Plan.Verb == verbRemove && w.img.Volume != "" {
		// Its removal may have ended a merge between the two; others may lie on it.
		if err := w.relinked(ctx); err != nil && !errors.Is(err, ErrBroken) {
			w.Log.Warn("header of a removed image", "image", w.id, "error", err)
		}
	}
	v, err := w.repo.scan(ctx) // takes its time, and no lock
	if err != nil {
		return err
	}
	images, volumes := v.garbage(w.id)
	images, volumes = v.related(w.img, images, volumes)
	var left leftovers
	err = w.repo.freeing().change(ctx, func(u *update) error {
		img, err := w.current(ctx)
		if err != nil {
			return err
		}
		if err := u.refresh(ctx, v, images, volumes); err != nil {
			return err
		}
		if len(v.damaged) > 0 {
			return nil // what a damaged document needs nobody knows
		}
		images, volumes := v.unneeded(images, volumes, img.ID)
		left, err = u.discard(ctx, v, images, volumes)
		if err == nil && slices.Contains(images, img.ID) {
			w.img.Plan = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return w.repo.freeing().clear(ctx, left, w.progress)
}

// related keeps of the garbage what an image left.
func (v *view) related(img *image, images, volumes []string) (ours, theirs []string) {
	near := v.near(img)
	for _, id := range images {
		if id == img.ID || v.images[id].Volume != "" && near[v.images[id].Volume] {
			ours = append(ours, id)
		}
	}
	for _, id := range volumes {
		if near[id] {
			theirs = append(theirs, id)
		}
	}
	return ours, theirs
}

func (v *view) below(id string) string {
	if vol := v.volumes[id]; vol != nil {
		return vol.Below
	}
	return ""
}

// leftovers are the volumes of garbage: data of which nobody knows any more, and what
// has to be erased before.
type leftovers struct {
	freed  []format.Data
	sealed []*volume
}

// discard removes the documents of garbage, images first, and returns the data that is
// left; clear does away with that. A volume that has to be erased keeps its document so
// long, so that nobody forgets it.
func (u *update) discard(ctx context.Context, v *view, images, volumes []string) (left leftovers, err error) {
	if left.sealed, err = u.seal(ctx, v, volumes); err != nil {
		return left, err
	}
	for _, id := range images {
		for _, kind := range []format.Kind{format.Pin, format.Image} {
			if err := u.drop(ctx, kind, id); err != nil {
				return left, err
			}
		}
		if err := failpoint.Hit("repository.discard.image"); err != nil {
			return left, err
		}
	}
	for _, id := range volumes {
		if v.volumes[id].Erase.pending() {
			continue
		}
		if err := u.drop(ctx, format.Volume, id); err != nil {
			return left, err
		}
		left.freed = append(left.freed, format.Data{ID: id, Kind: v.volumes[id].Format})
		if err := failpoint.Hit("repository.discard.volume"); err != nil {
			return left, err
		}
	}
	return left, nil
}

// clear frees what discard left, without the repository's lock. What is not erased to
// its end is found by the next check.
func (r *repo) clear(ctx context.Context, left leftovers, progress func(done, total int64)) error {
	err := r.free(ctx, left.freed)
	for _, v := range left.sealed {
		if failed := r.eraseVolume(ctx, v, progress); failed != nil {
			err = errors.Join(err, fmt.Errorf("volume %s/%s: %w", r.id, v.ID, failed))
			continue
		}
		if failed := r.change(ctx, func(u *update) error { return u.drop(ctx, format.Volume, v.ID) }); failed != nil {
			return errors.Join(err, failed)
		}
		err = errors.Join(err, r.free(ctx, []format.Data{{ID: v.ID, Kind: v.Format}}))
	}
	return err
}

// free deletes data of which no document speaks. What somebody has open stays,
// and is found by the next check.
func (r *repo) free(ctx context.Context, all []format.Data) error {
	var kept error
	for _, d := range all {
		switch err := r.deleteData(ctx, d); {
		case errors.Is(err, failure.Conflict):
			kept = errors.Join(kept, fmt.Errorf("volume %s/%s: %w: %w", r.id, d.ID, ErrInUse, err))
		case err != nil:
			return fmt.Errorf("volume %s/%s: %w", r.id, d.ID, err)
		}
		if err := failpoint.Hit("repository.free"); err != nil {
			return err
		}
	}
	return kept
}
