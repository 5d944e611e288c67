// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Clusters of a qcow2 volume leak when who wrote it dies. They take room and do no harm.
// Freeing them writes the volume's tables in place. Where whoever has it open for writing is
// alone with it, whatever becomes of his locks, that is done at once, under its lock. Else
// it is a plan of the image that has the volume: nobody gets to write that before the plan
// is done, and if who walks it falls silent the image is copied instead (takeover.go).

// leaked finds who can free that.
func (c *checking) leaked(v *volume, clusters int64) {
	fix := Fix{Type: Clean, Summary: fmt.Sprintf("free %d clusters of volume %s that leaked", clusters, v.ID), Bytes: -1}
	about := order{Kind: orderLeaks, Volumes: map[string]int64{v.ID: v.Gen}}
	if c.repo.exclusive() {
		c.add(fix, about)
		return
	}
	for _, id := range sorted(c.view.images) {
		if img := c.view.images[id]; img.Volume == v.ID && !img.Weak && img.Plan == nil {
			fix.Images, about.Into, about.Images = []string{id}, id, map[string]int64{id: img.Gen}
			c.add(fix, about)
			return
		}
	}
	c.report.Problems = append(c.report.Problems, fmt.Sprintf("volume %s: %d clusters leaked, which takes room and does no harm; "+
		"they go with it: no image has it any more that could be worked on", v.ID, clusters))
}

// repair plans to free what leaked in an image's volume.
func (f *fixing) repair(ctx context.Context, u *update) (*image, *plan, error) {
	img, err := f.fresh(ctx, f.about.Into)
	if err != nil {
		return nil, nil, err
	}
	gen, ours := f.about.Volumes[img.Volume]
	if !ours || img.Weak || img.Plan != nil {
		return nil, nil, f.stale("image", img.ID)
	}
	cut, err := u.pendingCut(ctx, img)
	if err != nil || cut != "" {
		return nil, nil, errors.Join(err, f.stale("image", img.ID))
	}
	c, err := u.chain(ctx, img)
	if err != nil {
		return nil, nil, err
	}
	if c[0].Gen != gen {
		return nil, nil, f.stale("volume", img.Volume)
	}
	if err := f.unusedVolume(ctx, u, img.Volume); err != nil {
		return nil, nil, err
	}
	return img, &plan{Verb: verbRepair, Stages: []string{stageLeaks}}, nil
}

// freeLeaks frees what leaked in the image's volume. It may be stopped at any moment.
func (w *worker) freeLeaks(ctx context.Context) error {
	return w.inPlace(ctx, func(c chain) error {
		// The headers are looked at: qemu-img follows them.
		opened, err := w.repo.inspect(ctx, c)
		if err != nil {
			return err
		}
		opened.Close()
		if err := w.Images.RepairLeaks(ctx, w.repo.place.Path(c[0].ID, c[0].Format), w.locks()...); err != nil {
			return err
		}
		return w.flush(ctx, c[0])
	})
}

// leaks frees what leaked in a volume while nobody uses it.
func (f *fixing) leaks(ctx context.Context) error {
	if !f.repo.exclusive() {
		return f.stale("volume", "") // no check finds it so any more
	}
	defer f.letGo(ctx, f.repo)
	for id, gen := range f.about.Volumes {
		l, err := f.repo.lockVolume(ctx, id)
		if err != nil {
			return err
		}
		defer l.Release()
		var volumes chain
		err = f.repo.change(ctx, func(u *update) error {
			v, err := u.volume(ctx, id)
			if errors.Is(err, fs.ErrNotExist) || err == nil && (v.Gen != gen || !v.Complete) {
				return f.stale("volume", id)
			}
			if err == nil {
				volumes, err = u.chain(ctx, &image{Volume: id})
			}
			return errors.Join(err, f.unusedVolume(ctx, u, id))
		})
		if err == nil {
			err = f.repo.openVolumes(ctx, volumes, true)
		}
		if err != nil {
			return err
		}
		opened, err := f.repo.inspect(ctx, volumes)
		if err != nil {
			return err
		}
		opened.Close()
		return f.Images.RepairLeaks(ctx, f.repo.place.Path(id, volumes[0].Format), filesOf(l)...)
	}
	return f.stale("volume", "")
}
