// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/repository/format"
)

// startOver gives the plan new volumes: who had the lock before may wake up and
// write to the old ones. What an earlier takeover left is discarded, so that the plan fits its
// document however often it is taken over: who wrote there lost the work two holders ago, and
// data that he still has open stays until a check finds it.
func (w *worker) startOver(ctx context.Context) error {
	begun := w.repo.safeInPlace(w.img.Plan) || w.img.Plan.Volume != ""
	if !begun && w.img.Plan.Verb == verbMerge {
		if err := w.relinked(ctx); err != nil {
			return err
		}
	}
	var gone []format.Data
	err := w.commit(ctx, func(u *update, img *image) (err error) {
		p := img.Plan
		if gone, err = u.forsake(ctx, p.Left); err != nil {
			return err
		}
		p.Left = nil
		if !begun {
			// What he changes in place nobody may use any more: it is copied. A disk that
			// was to grow has its size then.
			p.Volume, p.Size, p.From, p.Here = uuid.NewString(), max(img.Size, p.Size), img.ID, true
			p.Old = append(p.Old, img.Volume)
			p.copies()
			p.Stages = append(p.Stages, stageSweep)
			return nil
		}
		if p.Volume != "" && len(p.Parts) == 0 {
			v, err := w.repo.volume(ctx, p.Volume)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err == nil && !v.Complete {
				p.Left = append(p.Left, p.Volume)
				p.Volume = uuid.NewString()
			}
		}
		for i := range p.Parts {
			p.Left = append(p.Left, p.Parts[i].Copy)
			p.Parts[i].Copy = uuid.NewString()
		}
		if len(p.Parts) > 0 {
			p.Volume = p.Parts[0].Copy
		}
		return nil
	})
	if err == nil {
		if failed := w.repo.free(ctx, gone); failed != nil {
			w.Log.Warn("volumes of work that was taken over", "image", w.id, "error", failed)
		}
	}
	return err
}

// safeInPlace says of a plan that nothing comes of it if somebody else who walked it wakes
// up in the middle, and goes on. A merge changes volumes in place, and so does who makes a
// disk larger, or frees what leaked: where the storage lets two write, he would go on while a
// guest does.
func (r *repo) safeInPlace(p *plan) bool {
	return p.Verb != verbMerge && (r.exclusive() || p.Verb != verbResize && p.Verb != verbRepair)
}

// forsake removes the documents of volumes that only a plan knows of, and returns the data
// that is left.
func (u *update) forsake(ctx context.Context, ids []string) (gone []format.Data, err error) {
	for _, id := range ids {
		v, err := u.volume(ctx, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = u.drop(ctx, format.Volume, id)
		}
		if err != nil {
			return nil, err
		}
		gone = append(gone, format.Data{ID: id, Kind: v.Format})
	}
	return gone, nil
}

// relinked lets the document say what the header does, where a merge was left between
// the two: then the image's volume has all that it needs of the one below.
func (w *worker) relinked(ctx context.Context) error {
	c, err := w.repo.chain(ctx, w.img)
	if err != nil || len(c) < 2 || !slices.Contains(w.img.Plan.Old, c[1].ID) {
		return err
	}
	if err := w.repo.openVolumes(ctx, c, false); err != nil {
		return err
	}
	opened, err := w.repo.inspect(ctx, c)
	if err == nil {
		opened.Close()
		return nil
	}
	opened, other := w.repo.inspect(ctx, append(chain{c[0]}, c[2:]...))
	if other != nil {
		return err
	}
	opened.Close()
	c[0].Below, c[0].Erase = c[1].Below, c[0].Erase.and(c[1].Erase)
	return w.repo.saveVolume(ctx, c[0])
}
