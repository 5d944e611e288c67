// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"

	"diskhook/storage/failure"
)

// room refuses a copy for which there is no room, before anything is made. What
// shares its blocks needs none. Somebody else may take the room meanwhile: then the
// copy stops, and goes on when there is some.
func (f *found) room(ctx context.Context, target *repo) error {
	if f.repo == target && target.place.Capabilities().Clones {
		return nil
	}
	c, err := f.chain(ctx, f.image)
	if err != nil {
		return err
	}
	var needed int64
	for _, v := range c {
		needed += f.allocated(ctx, v.ID, v.Format)
	}
	if !target.place.Capabilities().Sparse || needed > f.image.Size {
		needed = f.image.Size
	}
	has, err := step(ctx, target, "ask for its capacity", target.place.Capacity)
	if err != nil || needed <= has.Available {
		return err
	}
	err = failure.New(failure.NoSpace, "repository %s: %d bytes are needed for a copy of image %s, %d are available", target.id, needed, f.image.ID, has.Available)
	return failure.Hint(err, "free some: see `diskhook repo check %s`", target.id)
}
