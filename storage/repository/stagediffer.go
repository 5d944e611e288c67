// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
)

// differ makes a volume over the base that is here, with what the image reads
// otherwise. It is laid over the image's own volumes first, wherever they are, then
// over the base, which takes in what differs. What it has taken of a snapshot is
// right whenever that goes on; of a disk, which may have been written since,
// nothing is kept.
func (w *worker) differ(ctx context.Context) error {
	v, done, err := w.begun(ctx, func() (string, error) { return w.base(ctx) })
	if err != nil || done {
		return err
	}
	lower, err := w.repo.volume(ctx, v.Below)
	if err != nil {
		return fmt.Errorf("volume %s: %w: %w", v.Below, ErrBroken, err)
	}
	from, err := w.from(ctx)
	if err != nil {
		return err
	}
	defer w.leave(ctx, from)
	still, release, err := w.quiet(ctx, from)
	if err != nil {
		return err
	}
	defer release()
	c, opened, err := from.readable(ctx) // qemu-img follows the headers, which say what the documents do
	if err != nil {
		return err
	}
	defer opened.Close()
	path := w.repo.place.Path(v.ID, v.Format)
	over := imagecheck.Layer{Path: from.place.Path(c[0].ID, c[0].Format), Format: c[0].Format}
	if err := w.laid(ctx, v, path, over, from.image.Kind == Disk); err != nil {
		return err
	}
	if err := failpoint.Hit("repository.differ.laid"); err != nil {
		return err
	}
	if err := w.repo.openVolumes(ctx, chain{lower}, false); err != nil {
		return err
	}
	err = w.Images.Rebase(ctx, qemuimg.RebaseOptions{
		Image: path, Below: w.backing(lower), Size: v.Size, Progress: w.progress, Locks: w.locks(),
	})
	if err != nil {
		return err
	}
	if err := still(ctx); err != nil {
		return errors.Join(err, w.delete(ctx, v.ID, v.Format)) // it would be gone on with
	}
	if err := failpoint.Hit("repository.differ.rebased"); err != nil {
		return err
	}
	return w.completed(ctx, v)
}

// laid makes the volume an overlay of the image to copy. One that an earlier
// worker made keeps what it has, unless that is of a disk.
func (w *worker) laid(ctx context.Context, v *volume, path string, over imagecheck.Layer, always bool) error {
	bytes := qemuimg.FullSize(v.Size)
	fresh, err := w.make(ctx, v, bytes)
	if err != nil {
		return err
	}
	if !fresh && always {
		if _, err = w.anew(ctx, v, bytes); err != nil {
			return err
		}
	}
	if !fresh && !always && w.Images.SetBacking(ctx, path, over, w.locks()...) == nil {
		return nil // it may name the path of another host
	}
	return w.Images.Format(ctx, path, v.Size, over, w.locks()...)
}
