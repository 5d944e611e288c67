// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/google/uuid"
)

// startOver gives the plan new volumes: who had the lock before may wake up and
// write to the old ones.
func (w *worker) startOver(ctx context.Context) error {
	if w.img.Plan.Verb == verbMerge {
		if err := w.relinked(ctx); err != nil {
			return err
		}
	}
	return w.commit(ctx, func(_ *update, img *image) error {
		p := img.Plan
		if p.Verb == verbMerge {
			// What he changes in place nobody may use any more: it is copied.
			p.Volume, p.Size, p.From, p.Here = uuid.NewString(), img.Size, img.ID, true
			p.Old = append(p.Old, img.Volume)
			p.copies()
			p.Stages = append(p.Stages, stageSweep)
			return nil
		}
		if p.Volume != "" {
			v, err := w.repo.volume(ctx, p.Volume)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err == nil && !v.Complete {
				p.Old = append(p.Old, p.Volume)
				p.Volume = uuid.NewString()
			}
		}
		for i := range p.Parts {
			p.Old = append(p.Old, p.Parts[i].Copy)
			p.Parts[i].Copy = uuid.NewString()
		}
		if len(p.Parts) > 0 {
			p.Volume = p.Parts[0].Copy
		}
		return nil
	})
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
