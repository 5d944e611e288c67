// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository/format"
	"diskhook/storage/transfer"
)

// publish lets the image point to the new volume, and ends a plan that makes it.
func (w *worker) publish(ctx context.Context) error {
	return w.commit(ctx, func(u *update, img *image) error {
		p := img.Plan
		if !p.creates() {
			if err := w.unread(ctx, u, img); err != nil {
				return err
			}
		}
		if p.Verb != verbSnapshot {
			if _, err := volumes(p.Volume, func(id string) (*volume, error) { return w.repo.volume(ctx, id) }); err != nil {
				return err
			}
			if img.Volume != p.Volume && img.Volume != "" {
				p.Old = append(p.Old, img.Volume)
			}
			img.Volume = p.Volume
		}
		if p.Verb == verbResize {
			img.Size = p.Size // it was copied, as somebody fell silent who made it larger
		}
		if p.creates() {
			w.end(img)
		}
		return nil
	})
}

// unread refuses to take an image's volumes away from who uses them, or copies what
// is in them; ErrInUse or ErrBusy. The plan goes on when they are done.
func (w *worker) unread(ctx context.Context, u *update, img *image) error {
	if err := w.unused(ctx, u.repo, img.ID); err != nil {
		return err
	}
	open, err := u.list(ctx, format.Operation)
	if err != nil {
		return err
	}
	for _, id := range open {
		reader, err := u.image(ctx, id)
		if errors.Is(err, ErrNoImage) {
			continue
		}
		if err != nil {
			return err
		}
		if p := reader.Plan; p != nil && p.Here && p.From == img.ID && id != img.ID {
			err := fmt.Errorf("image %s/%s: %w: %s of image %s reads it", u.id, img.ID, ErrBusy, p.Verb, id)
			return failure.Hint(err, "when that is done, `diskhook image resume --wait %s/%s`", u.id, img.ID)
		}
	}
	return nil
}

// freeze marks the disk, so that nobody writes it before it goes on in the new
// volume.
func (w *worker) freeze(ctx context.Context) error {
	return w.commit(ctx, func(u *update, img *image) error { return w.cut(ctx, u, img) })
}

// cut is freeze under the repository's lock. Before it the disk may have grown, where who
// asked for the snapshot died at once: then it is of all of it. The caller saves that.
func (s *Service) cut(ctx context.Context, u *update, snapshot *image) error {
	disk, err := u.image(ctx, snapshot.Plan.Disk)
	if errors.Is(err, ErrNoImage) || err == nil && disk.Volume != snapshot.Volume {
		return nil // it goes on elsewhere already
	}
	if err != nil {
		return err
	}
	snapshot.Size, snapshot.Plan.Size = disk.Size, disk.Size
	if disk.Cut == snapshot.ID {
		return nil
	}
	if err := s.unused(ctx, u.repo, disk.ID); err != nil {
		return err
	}
	disk.Cut = snapshot.ID
	return u.saveImage(ctx, disk)
}

// switchOver lets the disk go on in the new volume; its old one is the snapshot's
// alone from now on.
func (w *worker) switchOver(ctx context.Context) error {
	return w.repo.change(ctx, func(u *update) error {
		if _, err := w.current(ctx); err != nil {
			return err
		}
		disk, err := u.image(ctx, w.img.Plan.Disk)
		if errors.Is(err, ErrNoImage) || err == nil && (disk.Volume != w.img.Volume || disk.Cut != w.img.ID) {
			return nil
		}
		if err != nil {
			return err
		}
		disk.Volume, disk.Base, disk.Cut = w.img.Plan.Volume, w.img.ID, ""
		return u.saveImage(ctx, disk)
	})
}

// parts copies the volumes above the base as they are, bottom first, while nobody
// changes what is in them.
func (w *worker) parts(ctx context.Context) error {
	p := w.img.Plan
	var from *found
	var still func(context.Context) error
	for i := len(p.Parts) - 1; i >= 0; i-- {
		v, err := w.part(ctx, p.Parts[i])
		if err != nil {
			return err
		}
		if v.Size > 0 {
			continue // its content is here
		}
		if from == nil {
			if from, err = w.from(ctx); err != nil {
				return err
			}
			defer w.leave(ctx, from)
			var release func()
			if still, release, err = w.quiet(ctx, from); err != nil {
				return err
			}
			defer release()
		}
		if err := w.bringPart(ctx, from, still, p.Parts[i], v); err != nil {
			return err
		}
	}
	return nil
}

// part returns the document of a part's copy. Size 0 says that its content is not here.
func (w *worker) part(ctx context.Context, p part) (*volume, error) {
	v, err := w.repo.volume(ctx, p.Copy)
	if !errors.Is(err, os.ErrNotExist) {
		return v, err
	}
	v = &volume{ID: p.Copy, Format: imagecheck.QCOW2}
	if err := w.repo.saveVolume(ctx, v); err != nil {
		return nil, err
	}
	return v, failpoint.Hit("repository.part.document")
}

// bringPart copies a qcow2 volume byte by byte, with the name of what it lies on,
// which means nothing here and is replaced when it is linked.
func (w *worker) bringPart(ctx context.Context, from *found, still func(context.Context) error, p part, v *volume) error {
	c, opened, err := from.readable(ctx) // the headers of the whole chain are looked at
	if err != nil {
		return err
	}
	opened.Close()
	i := slices.IndexFunc(c, func(of *volume) bool { return of.ID == p.Of })
	if i < 0 {
		return fmt.Errorf("image %s/%s: %w: it does not lie on volume %s any more; remove the copy and make another", from.id, from.image.ID, ErrBroken, p.Of)
	}
	of := c[i]
	if err := from.unchanged(ctx, of); err != nil {
		return err
	}
	bytes := []imagecheck.Layer{{Path: from.place.Path(of.ID, of.Format), Format: imagecheck.Raw}}
	file, err := imagecheck.Checker{Allowed: only(bytes)}.Open(ctx, bytes)
	if err != nil {
		return err
	}
	defer file.Close()
	source := sourceOf(bytes, file, file.VirtualSize)
	source.Fingerprint += fmt.Sprintf("-%d-%s", of.Gen, from.image.version())
	if err := w.bring(ctx, v, file.VirtualSize, source); err != nil {
		return err
	}
	if err := errors.Join(still(ctx), from.unchanged(ctx, of)); err != nil {
		return errors.Join(err, transfer.RemoveCursor(w.repo.place.Cursor(v.ID)))
	}
	if err := w.extend(ctx, v, of.Size); err != nil {
		return err
	}
	if err := w.flush(ctx, v); err != nil {
		return err
	}
	v.Size = of.Size
	if err := w.repo.saveVolume(ctx, v); err != nil {
		return err
	}
	return errors.Join(transfer.RemoveCursor(w.repo.place.Cursor(v.ID)), failpoint.Hit("repository.part.copied"))
}

// unchanged fails where a volume is changed in place, or was since it was read: its
// bytes belong together only as long as nobody does that, whatever it reads as.
func (f *found) unchanged(ctx context.Context, of *volume) error {
	ours := f.image.Kind == Disk && of.ID == f.image.Volume // the lock is
	held, err := step(ctx, f.repo, "look at a lock", func(ctx context.Context) (bool, error) {
		if ours {
			return false, nil
		}
		return f.place.Held(ctx, volumeLock(of.ID))
	})
	if err != nil {
		return err
	}
	now, err := f.volume(ctx, of.ID)
	if err == nil && (held || now.Gen != of.Gen) {
		err = fmt.Errorf("volume %s/%s: %w: it was merged while it was copied, which begins anew", f.id, of.ID, ErrBusy)
	}
	return err
}

// link lays the copied volumes over the base's volume here. The base has to be in this
// repository by now: until then the image stays broken.
func (w *worker) link(ctx context.Context) error {
	p, below := w.img.Plan, w.base
	for i := len(p.Parts) - 1; i >= 0; i-- {
		id := p.Parts[i].Copy
		if err := w.linkPart(ctx, id, below); err != nil {
			return err
		}
		below = func(context.Context) (string, error) { return id, nil }
	}
	return nil
}

// base is the volume of the plan's base in this repository, under whose lock it is
// asked: a merge that takes it away asks under that lock who needs it.
func (w *worker) base(ctx context.Context) (string, error) {
	base, err := w.repo.image(ctx, w.img.Plan.Base)
	if err == nil && base.Plan.creates() {
		err = fmt.Errorf("image %s: %w yet", base.ID, ErrBroken)
	}
	if err != nil {
		return "", fmt.Errorf("base: %w; copy it here first", err)
	}
	return heldBy(base)
}

// heldBy is the volume of an image on which another one is to lie. ErrBroken: it was
// removed, and what lay on it alone has its volume.
func heldBy(base *image) (string, error) {
	if base.Volume == "" {
		return "", fmt.Errorf("base: image %s: %w: it was removed, and its volume is being merged into another; when that is done, copy it here again", base.ID, ErrBroken)
	}
	return base.Volume, nil
}

func (w *worker) linkPart(ctx context.Context, id string, below func(context.Context) (string, error)) error {
	v, err := w.repo.volume(ctx, id)
	if err != nil || v.Complete {
		return err
	}
	if v.Below == "" {
		// In the document first: from now on nobody removes what it lies on.
		err := w.repo.change(ctx, func(u *update) (err error) {
			if v.Below, err = below(ctx); err != nil {
				return err
			}
			if _, err := u.volume(ctx, v.Below); err != nil {
				return err
			}
			return u.saveVolume(ctx, v)
		})
		if err != nil {
			return err
		}
		if err := failpoint.Hit("repository.part.below"); err != nil {
			return err
		}
	}
	lower, err := w.repo.volume(ctx, v.Below)
	if err != nil {
		return err
	}
	if err := w.repo.openVolumes(ctx, chain{v}, true); err != nil {
		return err
	}
	if err := w.Images.SetBacking(ctx, w.repo.place.Path(v.ID, v.Format), w.backing(lower), w.locks()...); err != nil {
		return err
	}
	return w.completed(ctx, v)
}

// grow makes the disk larger, its volume first. Nobody gets to use it in between.
func (w *worker) grow(ctx context.Context) error {
	size := w.img.Plan.Size
	return w.inPlace(ctx, func(c chain) error {
		if err := w.enlarge(ctx, c[0], size); err != nil {
			return err
		}
		return w.commit(ctx, func(_ *update, img *image) error {
			img.Size = size
			w.end(img)
			return nil
		})
	})
}

// enlarge makes a volume read zero from its end up to size.
func (w *worker) enlarge(ctx context.Context, v *volume, size int64) error {
	if v.Size >= size {
		return nil
	}
	if err := w.extend(ctx, v, size); err != nil {
		return err
	}
	if v.Format == imagecheck.QCOW2 {
		if err := w.Images.Resize(ctx, w.repo.place.Path(v.ID, v.Format), size, w.locks()...); err != nil {
			return err
		}
	}
	if err := w.flush(ctx, v); err != nil {
		return err
	}
	if err := failpoint.Hit("repository.grown"); err != nil {
		return err
	}
	return w.amend(ctx, v, func(_ *update, v *volume) error {
		v.Size = size
		return nil
	})
}

// extend gives a volume the room that an image of a size may take. Where zeros have
// to be written there is no deadline to that.
func (w *worker) extend(ctx context.Context, v *volume, size int64) error {
	bytes := size
	if v.Format == imagecheck.QCOW2 {
		bytes = qemuimg.FullSize(size)
	}
	grow := func(ctx context.Context) (struct{}, error) {
		return struct{}{}, w.repo.place.Grow(ctx, v.ID, v.Format, bytes)
	}
	var err error
	if w.repo.place.Capabilities().Stale {
		_, err = command.Abandon(ctx, func() (struct{}, error) { return grow(ctx) })
	} else {
		_, err = step(ctx, w.repo, "grow", grow)
	}
	return err
}

// deleteData frees a volume's storage.
func (r *repo) deleteData(ctx context.Context, d format.Data) error {
	_, err := step(ctx, r, "delete a volume", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.place.Delete(ctx, d.ID, d.Kind)
	})
	return err
}

func isBlock(path string) (bool, error) {
	st, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return st.Mode()&os.ModeDevice != 0, nil
}
