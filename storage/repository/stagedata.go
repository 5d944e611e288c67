// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository/format"
	"diskhook/storage/transfer"
)

// begun returns the plan's new volume, whose document it writes if there is
// none: no data is anywhere without its document. done says that it is complete.
func (w *worker) begun(ctx context.Context, below func() (string, error)) (v *volume, done bool, err error) {
	p := w.img.Plan
	v, err = w.repo.volume(ctx, p.Volume)
	if err == nil {
		return v, v.Complete, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	v = &volume{ID: p.Volume, Format: p.Format, Size: p.Size}
	err = w.repo.change(ctx, func(u *update) (err error) {
		if below != nil {
			if v.Below, err = below(); err != nil {
				return err
			}
		}
		return u.saveVolume(ctx, v)
	})
	if err == nil {
		err = failpoint.Hit("repository.volume.document")
	}
	return v, false, err
}

// completed flushes a volume and says that its content is there.
func (w *worker) completed(ctx context.Context, v *volume) error {
	if err := w.flush(ctx, v); err != nil {
		return err
	}
	if err := failpoint.Hit("repository.volume.data"); err != nil {
		return err
	}
	v.Complete = true
	return w.repo.saveVolume(ctx, v)
}

func (w *worker) flush(ctx context.Context, v *volume) error {
	_, err := step(ctx, w.repo, "flush", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, w.repo.place.Flush(ctx, v.ID, v.Format)
	})
	return err
}

// errOldHost says that another host has a volume of the plan open, or may go on changing
// it: a worker had it, and has died or fell silent, for this one has the lock of the work.
var errOldHost = errors.New("it was left open there by work that died")

// make makes room for a new volume and opens it for writing; errOldHost.
func (w *worker) make(ctx context.Context, v *volume, bytes int64) (fresh bool, err error) {
	fresh, err = step(ctx, w.repo, "make a volume", func(ctx context.Context) (bool, error) {
		return w.repo.place.Make(ctx, v.ID, v.Format, bytes)
	})
	if err == nil {
		err = w.repo.openVolumes(ctx, chain{v}, true)
	}
	if errors.Is(err, format.ErrElsewhere) {
		err = fmt.Errorf("%w: %w", errOldHost, err)
	}
	if err != nil {
		return false, fmt.Errorf("volume %s: %w", v.ID, err)
	}
	return fresh, nil
}

// anew is make of a volume of which nothing is kept.
func (w *worker) anew(ctx context.Context, v *volume, bytes int64) (fresh bool, err error) {
	if err := w.delete(ctx, v.ID, v.Format); err != nil {
		return false, err
	}
	return w.make(ctx, v, bytes)
}

func (w *worker) delete(ctx context.Context, id, kind string) error {
	return w.repo.deleteData(ctx, format.Data{ID: id, Kind: kind})
}

// allocate makes an empty volume.
func (w *worker) allocate(ctx context.Context) error {
	v, done, err := w.begun(ctx, nil)
	if err != nil || done {
		return err
	}
	fresh, err := w.make(ctx, v, v.Size)
	switch {
	case err == nil && !fresh && w.repo.place.Capabilities().Stale:
		err = w.blank(ctx, v)
	case err == nil && !fresh:
		err = failure.New(failure.Conflict, "volume %s: something is in it", v.ID)
	}
	if err != nil {
		return err
	}
	return w.completed(ctx, v)
}

// overlay makes a volume over the one of From, or of a snapshot that is being made.
func (w *worker) overlay(ctx context.Context) error {
	v, done, err := w.begun(ctx, func() (string, error) {
		if w.img.Plan.Verb == verbSnapshot {
			return w.img.Volume, nil
		}
		base, err := w.repo.image(ctx, w.img.Plan.From)
		if err != nil {
			return "", err
		}
		return heldBy(base)
	})
	if err != nil || done {
		return err
	}
	below, err := w.repo.volume(ctx, v.Below)
	if err != nil {
		return fmt.Errorf("volume %s: %w: %w", v.Below, ErrBroken, err)
	}
	if _, err := w.make(ctx, v, qemuimg.FullSize(v.Size)); err != nil {
		return err
	}
	if err := w.Images.Format(ctx, w.repo.place.Path(v.ID, v.Format), v.Size, w.backing(below), w.locks()...); err != nil {
		return err
	}
	return w.completed(ctx, v)
}

// backing is a volume as an overlay's header names it.
func (w *worker) backing(v *volume) imagecheck.Layer {
	return imagecheck.Layer{Path: w.repo.place.Backing(v.ID, v.Format), Format: v.Format}
}

// copy makes a volume with the content of an image, or of an imported chain.
func (w *worker) copy(ctx context.Context) error {
	v, complete, err := w.begun(ctx, nil)
	if err != nil || complete {
		return err
	}
	source, still, done, err := w.source(ctx)
	if err != nil {
		return err
	}
	defer done()
	return w.fill(ctx, v, source, still)
}

// fill copies source to a volume and completes that, if what was read is still
// of one moment then; else it begins anew the next time.
func (w *worker) fill(ctx context.Context, v *volume, source transfer.Source, still func(context.Context) error) error {
	if err := w.bring(ctx, v, v.Size, source); err != nil {
		return err
	}
	if err := still(ctx); err != nil {
		return errors.Join(err, transfer.RemoveCursor(w.repo.place.Cursor(v.ID)))
	}
	if err := w.completed(ctx, v); err != nil {
		return err
	}
	return transfer.RemoveCursor(w.repo.place.Cursor(v.ID))
}

// bring copies source to a volume of so many bytes, going on where an earlier
// copy was stopped.
func (w *worker) bring(ctx context.Context, v *volume, bytes int64, source transfer.Source) error {
	fresh, err := w.make(ctx, v, bytes)
	if err != nil {
		return err
	}
	target := transfer.Target{Path: w.repo.place.Path(v.ID, v.Format), Size: bytes, Zeroed: fresh, ID: v.ID}
	if target.Block, err = isBlock(target.Path); err != nil {
		return err
	}
	cursor := w.repo.place.Cursor(v.ID)
	if _, ok := transfer.Resumable(cursor, source, target); !ok && !fresh {
		if err := transfer.RemoveCursor(cursor); err != nil {
			return err
		}
		if !w.repo.place.Capabilities().Stale { // else all of it is written in any case
			if target.Zeroed, err = w.anew(ctx, v, bytes); err != nil {
				return err
			}
		}
	}
	_, err = w.Engine.Copy(ctx, source, target, transfer.Options{
		Cursor: cursor, LateCursor: true, Locks: w.locks(), Progress: w.progress,
	})
	return err
}

// source is what a plan copies, held open until done; still says whether all that was
// read until then is of one moment.
func (w *worker) source(ctx context.Context) (_ transfer.Source, still func(context.Context) error, done func(), err error) {
	if layers := w.img.Plan.Layers; layers != nil {
		opened, err := imagecheck.Checker{Allowed: w.Allowed}.Open(ctx, layers)
		if err != nil {
			return transfer.Source{}, nil, nil, err
		}
		still = func(context.Context) error { return nil } // the engine looks at the files
		return sourceOf(layers, opened, opened.VirtualSize), still, opened.Close, nil
	}
	from, err := w.from(ctx)
	if err != nil {
		return transfer.Source{}, nil, nil, err
	}
	still, release, err := w.quiet(ctx, from)
	if err != nil {
		w.leave(ctx, from)
		return transfer.Source{}, nil, nil, err
	}
	c, opened, err := from.readable(ctx)
	if err != nil {
		release()
		w.leave(ctx, from)
		return transfer.Source{}, nil, nil, err
	}
	source := sourceOf(from.layers(c), opened, from.image.Size)
	// Who prepares a disk for writing gives it a new generation, which tells
	// more of a device than its fingerprint.
	source.Fingerprint += "-" + from.image.version()
	return source, still, func() {
		opened.Close()
		release()
		w.leave(ctx, from)
	}, nil
}

// quiet keeps everybody from writing a disk until release is called; a snapshot
// nobody writes. still fails where that did not help: this host was asleep, so that the
// lock is another's; or the image was removed, and its volume taken for a merge.
func (w *worker) quiet(ctx context.Context, from *found) (still func(context.Context) error, release func(), err error) {
	if from.image.Kind != Disk {
		return from.unmoved, func() {}, nil
	}
	l, err := from.lockVolume(ctx, from.image.Volume)
	if err != nil {
		return nil, nil, err
	}
	err = from.change(ctx, func(u *update) error {
		now, err := u.image(ctx, from.image.ID)
		if err != nil {
			return err
		}
		if now.Volume != from.image.Volume {
			return fmt.Errorf("image %s/%s: %w", from.id, now.ID, ErrBusy)
		}
		from.image = now
		holders, err := w.holders(ctx, u.repo, now.ID)
		if err == nil && slices.ContainsFunc(holders, func(h holder) bool { return h.Write }) {
			err = u.inUse(now.ID, holders)
		}
		return err
	})
	if err != nil {
		l.Release()
		return nil, nil, err
	}
	still = func(ctx context.Context) error { return errors.Join(l.Check(), from.unmoved(ctx)) }
	return still, l.Release, nil
}

// unmoved fails once an image has another volume, or none: what the one that it had reads
// as is not the image's any more. A merge takes it away before it writes there.
func (f *found) unmoved(ctx context.Context) error {
	now, err := f.repo.image(ctx, f.image.ID)
	if err == nil && now.Volume != f.image.Volume {
		err = fmt.Errorf("image %s/%s: %w: it was merged or removed while it was read, which begins anew", f.id, f.image.ID, ErrBusy)
	}
	return err
}

func sourceOf(layers []imagecheck.Layer, opened *imagecheck.Opened, size int64) transfer.Source {
	return transfer.Source{Layers: layers, Files: opened.Files, Fingerprint: opened.Fingerprint, Size: size}
}

// from finds the plan's source again: repositories may be connected under other
// names by now, and on this host.
func (w *worker) from(ctx context.Context) (*found, error) {
	p := w.img.Plan
	if p.Here {
		img, err := w.repo.image(ctx, p.From)
		return &found{w.repo, img}, err
	}
	f, err := w.search(ctx, w.repo, p.From, Options{})
	if err == nil && f.repo == w.repo && f.image.ID == w.img.ID {
		err = fmt.Errorf("image %s: %w: it is in no other repository that is connected", p.From, ErrNoImage)
	}
	return f, err
}

// readable opens an image's chain for reading: that of a disk only while nobody writes it.
func (f *found) readable(ctx context.Context) (chain, *imagecheck.Opened, error) {
	c, err := f.chain(ctx, f.image)
	if err != nil {
		return nil, nil, err
	}
	if err := f.openVolumes(ctx, c, false); err != nil {
		return nil, nil, err
	}
	opened, err := f.inspect(ctx, c)
	return c, opened, err
}
