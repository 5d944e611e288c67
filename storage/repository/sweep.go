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
	v, err := w.repo.scan(ctx) // takes its time, and no lock
	if err != nil {
		return err
	}
	images, volumes := v.garbage(w.id)
	images, volumes = v.related(w.img, images, volumes)
	var freed []format.Data
	err = w.repo.change(ctx, func(u *update) error {
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
		freed, err = u.discard(ctx, v, images, volumes)
		if err == nil && slices.Contains(images, img.ID) {
			w.img.Plan = nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return w.repo.free(ctx, freed)
}

// related keeps of the garbage what an image left.
func (v *view) related(img *image, images, volumes []string) (ours, theirs []string) {
	near := map[string]bool{}
	for _, id := range append(img.Plan.makes(), img.Volume) {
		for ; id != "" && !near[id]; id = v.below(id) {
			near[id] = true
		}
	}
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

// discard removes the documents of garbage, images first, and returns the data
// that is left, of which nobody knows any more.
func (u *update) discard(ctx context.Context, v *view, images, volumes []string) ([]format.Data, error) {
	for _, id := range images {
		for _, kind := range []format.Kind{format.Pin, format.Image} {
			if err := u.drop(ctx, kind, id); err != nil {
				return nil, err
			}
		}
		if err := failpoint.Hit("repository.discard.image"); err != nil {
			return nil, err
		}
	}
	var freed []format.Data
	for _, id := range volumes {
		if err := u.drop(ctx, format.Volume, id); err != nil {
			return nil, err
		}
		freed = append(freed, format.Data{ID: id, Kind: v.volumes[id].Format})
		if err := failpoint.Hit("repository.discard.volume"); err != nil {
			return nil, err
		}
	}
	return freed, nil
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
