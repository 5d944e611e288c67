// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
)

// bookkeeping is what a change takes besides data where both are in one file system: documents, each written beside
// the one that it replaces, and the tables of an image in which nothing is.
const bookkeeping = 1 << 20

// room refuses what takes so many bytes of data and for which there is no room,
// before anything is made; what says it in words. Somebody else may take the room
// meanwhile: then the work stops, and goes on when there is some.
func (r *repo) room(ctx context.Context, bytes int64, what string) error {
	if r.place.Capabilities().Sparse {
		bytes += bookkeeping
	}
	has, err := step(ctx, r, "ask for its capacity", r.place.Capacity)
	if err != nil || bytes <= has.Available {
		return err
	}
	err = failure.New(failure.NoSpace, "repository %s: %s takes %d bytes, %d are available", r.id, what, bytes, has.Available)
	return failure.Hint(err, "free some: `diskhook repo check %s` shows what can be cleaned, or grow its storage", r.id)
}

// fits refuses a volume that is larger than the storage can have one, before anything is
// promised.
func (r *repo) fits(ctx context.Context, kind string, virtual int64) error {
	if kind != imagecheck.Raw {
		return nil // it grows with its data
	}
	_, err := step(ctx, r, "ask for its largest file", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.place.Fits(ctx, virtual)
	})
	if err != nil {
		return fmt.Errorf("repository %s: %w", r.id, err)
	}
	return nil
}

// empty is what a volume takes at once in which nothing is, of that virtual size.
func (r *repo) empty(kind string, virtual int64) int64 {
	switch {
	case r.place.Capabilities().Sparse:
		return 0
	case kind == imagecheck.QCOW2:
		return qemuimg.FullSize(virtual)
	}
	return virtual
}

// roomToCopy is room for the whole content of an image. What shares its blocks
// takes none.
func (f *found) roomToCopy(ctx context.Context, target *repo) error {
	var bytes int64
	if f.repo != target || !target.place.Capabilities().Clones {
		c, err := f.chain(ctx, f.image)
		if err != nil {
			return err
		}
		bytes = target.whole(f.allocatedAll(ctx, c), f.image.Size)
	}
	return target.room(ctx, bytes, "a copy of image "+f.image.ID)
}

// whole is what a whole copy takes of an image that has so many bytes allocated.
func (r *repo) whole(allocated, virtual int64) int64 {
	if r.place.Capabilities().Sparse {
		return min(allocated, virtual)
	}
	return virtual
}

func (r *repo) allocatedAll(ctx context.Context, c chain) int64 {
	var bytes int64
	for _, v := range c {
		bytes += r.allocated(ctx, v.ID, v.Format)
	}
	return bytes
}

// allocatedBelow is an estimate of the data in layers that are in no repository; a
// device may be full of it.
func allocatedBelow(layers []imagecheck.Layer, virtual int64) int64 {
	const sector = 512 // the unit of st_blocks, stat(2)
	var bytes int64
	for _, l := range layers {
		st, err := os.Stat(l.Path)
		if err != nil {
			continue // it is not what makes this fail
		}
		if st.Mode()&os.ModeDevice != 0 {
			return virtual
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			bytes += sys.Blocks * sector
		}
	}
	return bytes
}
