// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository/format"
)

// flatten reads into the image's volume what it takes from the one below. What the
// image reads as is the same at every moment, so it may be stopped at any, and used then.
func (w *worker) flatten(ctx context.Context) error {
	return w.inPlace(ctx, func(c chain) error {
		if len(c) < 2 || !slices.Contains(w.img.Plan.Old, c[1].ID) {
			return nil // it lies on something else already
		}
		layers := w.repo.layers(c)
		extents, err := w.Images.Map(ctx, layers, nil)
		if err != nil {
			return err
		}
		wanted := []qemuimg.Range{}
		for _, x := range extents {
			// What the volume below does not have either reads zero, or from one
			// further down, without it as well.
			if x.Depth == 1 && (!x.Zero || len(c) > 2) {
				wanted = append(wanted, qemuimg.Range{Offset: x.Start, Length: x.Length})
			}
		}
		err = w.Images.Flatten(ctx, qemuimg.FlattenOptions{
			Chain: layers, Size: c[0].Size, Only: wanted, Progress: w.progress, Locks: w.locks(),
		})
		if err != nil {
			return err
		}
		return w.flush(ctx, c[0])
	})
}

// relink lays the image's volume over what the one below lies on, in its header
// first: until the document says so too, the headers do not agree with it and
// nobody uses it.
func (w *worker) relink(ctx context.Context) error {
	return w.inPlace(ctx, func(c chain) error {
		if len(c) < 2 || !slices.Contains(w.img.Plan.Old, c[1].ID) {
			return nil
		}
		path := w.repo.place.Path(c[0].ID, c[0].Format)
		var err error
		if len(c) > 2 {
			err = w.Images.SetBacking(ctx, path, w.backing(c[2]), w.locks()...)
		} else {
			err = w.Images.RemoveBacking(ctx, path, w.locks()...)
		}
		if err != nil {
			return err
		}
		if err := failpoint.Hit("repository.merge.header"); err != nil {
			return err
		}
		if err := w.flush(ctx, c[0]); err != nil {
			return err
		}
		return w.amend(ctx, c[0], func(u *update, v *volume) error {
			lower, err := u.volume(ctx, c[1].ID)
			if err != nil {
				return err
			}
			// It has got some of what is to be erased once nobody reads it.
			v.Below, v.Erase = lower.Below, v.Erase.and(lower.Erase)
			return nil
		})
	})
}

// sink writes what the image's volume has into the one below, which the image
// points to from then on. Before that both together read as ever; the lower one alone,
// whose image was removed, is nobody's. Until the image points to the lower volume
// nobody gets to use the upper one: what he wrote would be left behind.
func (w *worker) sink(ctx context.Context) error {
	return w.inPlace(ctx, func(c chain) error {
		if !slices.Contains(w.img.Plan.Old, c[0].ID) {
			return nil // it points to the lower one already
		}
		ours := len(c) > 1
		if ours {
			var err error
			if ours, err = w.disown(ctx, c[1].ID); err != nil {
				return err
			}
		}
		if !ours {
			return w.commit(ctx, func(_ *update, img *image) error {
				w.end(img) // there is nothing to merge any more
				return nil
			})
		}
		if err := w.sinkInto(ctx, c); err != nil {
			return err
		}
		return w.commit(ctx, func(_ *update, img *image) error {
			img.Volume = c[1].ID
			return nil
		})
	})
}

// sinkInto writes what the top volume has into the second one.
func (w *worker) sinkInto(ctx context.Context, c chain) error {
	into := c[1]
	if err := failpoint.Hit("repository.merge.disowned"); err != nil {
		return err
	}
	if err := w.repo.openVolumes(ctx, chain{into}, true); err != nil {
		return err
	}
	err := w.amend(ctx, into, func(_ *update, v *volume) error {
		v.Erase = v.Erase.and(c[0].Erase)
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.enlarge(ctx, into, c[0].Size); err != nil {
		return err
	}
	// The headers are looked at: qemu-img follows them.
	opened, err := w.repo.inspect(ctx, c)
	if err != nil {
		return err
	}
	opened.Close()
	path := w.repo.place.Path(c[0].ID, c[0].Format)
	err = w.Images.Commit(ctx, qemuimg.CommitOptions{Image: path, Size: c[0].Size, Progress: w.progress, Locks: w.locks()})
	if err != nil {
		return err
	}
	if err := w.flush(ctx, into); err != nil {
		return err
	}
	return failpoint.Hit("repository.merge.sunk")
}

// disown takes a volume from the removed image that had it: its content is about
// to become another's. It says whether that is so. Since the merge was planned somebody may
// have wanted the image again, or laid another one over it; from now on nobody can.
func (w *worker) disown(ctx context.Context, volume string) (ours bool, err error) {
	v, err := w.repo.scan(ctx) // takes its time, and no lock
	if err != nil {
		return false, err
	}
	from := w.img.Plan.From
	err = w.repo.change(ctx, func(u *update) error {
		if _, err := w.current(ctx); err != nil {
			return err
		}
		if err := u.refresh(ctx, v, []string{from}, []string{volume}); err != nil {
			return err
		}
		if len(v.damaged) > 0 { // what these need nobody knows
			return fmt.Errorf("repository %s: %w", w.repo.id, errors.Join(v.damaged...))
		}
		if ours = !v.wanted(w.id, from, volume); !ours {
			return nil
		}
		removed := v.images[from]
		if removed == nil || removed.Volume != volume {
			return nil
		}
		removed.Volume = ""
		return u.saveImage(ctx, removed)
	})
	return ours && err == nil, err
}

// wanted says whether anybody but the image that is merged needs the volume below its
// own, or the removed image that this was of.
func (v *view) wanted(merged, removed, volume string) bool {
	u := v.uses(merged)
	pointers := 0
	if img := v.images[removed]; img != nil && img.Volume == volume {
		if !img.Weak || v.pins[removed] != nil {
			return true
		}
		pointers = 1
	}
	return u.images[volume] > pointers || u.above[volume] > 1 || u.plans[removed] > 0
}

// inPlace changes an image's volume that others may read: nobody uses it
// meanwhile, nor anything above it.
func (w *worker) inPlace(ctx context.Context, do func(chain) error) error {
	l, err := w.repo.lockVolume(ctx, w.img.Volume)
	if err != nil {
		return err
	}
	defer l.Release()
	if l.TakenOver() && !w.repo.safeInPlace(w.img.Plan) {
		// The lock of the work had somebody else since, who began nothing.
		return fmt.Errorf("volume %s/%s: %w", w.repo.id, w.img.Volume, errOldHost)
	}
	// Who outlives us keeps it, too: a child goes on writing.
	w.also = filesOf(l)
	defer func() { w.also = nil }()
	err = w.repo.change(ctx, func(u *update) error { return w.unusedVolume(ctx, u, w.img.Volume) })
	if err != nil {
		return err
	}
	c, err := w.repo.chain(ctx, w.img)
	if err != nil {
		return err
	}
	if err := w.repo.openVolumes(ctx, c, true); err != nil {
		return err
	}
	// A new generation first: who copies its bytes finds out.
	if err := w.amend(ctx, c[0], func(*update, *volume) error { return nil }); err != nil {
		return err
	}
	return do(c)
}

// amend changes a volume's document as it is by now, and saves it: others may have noted
// meanwhile what has to become of its data.
func (w *worker) amend(ctx context.Context, v *volume, change func(*update, *volume) error) error {
	return w.repo.change(ctx, func(u *update) error {
		now, err := u.volume(ctx, v.ID)
		if err == nil {
			err = change(u, now)
		}
		if err == nil {
			err = u.saveVolume(ctx, now)
		}
		if err == nil {
			*v = *now
		}
		return err
	})
}

// lockVolume keeps everybody from using a volume; ErrBusy.
func (r *repo) lockVolume(ctx context.Context, id string) (format.Lock, error) {
	l, err := step(ctx, r, "lock", func(ctx context.Context) (format.Lock, error) { return r.place.TryLock(ctx, volumeLock(id)) })
	if errors.Is(err, lock.ErrHeld) {
		return nil, fmt.Errorf("volume %s/%s: %w", r.id, id, ErrBusy)
	}
	return l, err
}

// unusedVolume refuses a volume that somebody uses or that is below one; ErrInUse.
func (s *Service) unusedVolume(ctx context.Context, u *update, id string) error {
	pinned, err := u.list(ctx, format.Pin)
	if err != nil {
		return err
	}
	for _, imageID := range pinned {
		holders, err := s.holders(ctx, u.repo, imageID)
		if err != nil {
			return err
		}
		if len(holders) == 0 {
			continue
		}
		img, err := u.image(ctx, imageID)
		if errors.Is(err, failure.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		c, err := u.chain(ctx, img)
		if err != nil && !errors.Is(err, ErrBroken) {
			return err
		}
		if slices.ContainsFunc(c, func(v *volume) bool { return v.ID == id }) {
			return u.inUse(imageID, holders)
		}
	}
	return nil
}
