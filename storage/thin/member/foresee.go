// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"slices"

	"diskhook/storage/thin/layout"
)

// What a dry run asks before a verb: without a lock, and changing nothing.

// Stoppable says whether Stop would have anything to take away, and refuses what Stop
// would refuse.
func (c *Member) Stoppable(ctx context.Context) (bool, error) {
	all, err := c.devices(ctx)
	if err != nil {
		return false, err
	}
	return len(all) > 0, c.removable(ctx, all)
}

// Started says that Start would find everything as it is to be: the pool runs, each
// volume that the map has here has its device, and no request is without an answer.
func (c *Member) Started(ctx context.Context) (bool, error) {
	now, err := c.foresee(ctx)
	if err != nil || now.Pool == nil || now.Pending != "" {
		return false, err
	}
	return !slices.ContainsFunc(now.Volumes, func(v VolumeStatus) bool {
		return v.State != layout.Attached || v.Path == "" || v.Suspended
	}), nil
}

// Ready refuses a pool that does not run, as all do that need it.
func (c *Member) Ready(ctx context.Context) error {
	_, err := c.Spare(ctx)
	return err
}

// Spare is how many blocks Free would give back at most, as the pool is now. With a pool
// that does not run it fails as Free and Use do.
func (c *Member) Spare(ctx context.Context) (uint64, error) {
	now, err := c.foresee(ctx)
	if err != nil {
		return 0, err
	}
	if now.Pool == nil {
		return 0, c.stopped()
	}
	free := now.Pool.Free()
	return free - min(free, c.lowWater()), nil
}

// Unused refuses a volume whose device is here and in use, as Detach would. Who has a
// claim on it is not asked.
func (c *Member) Unused(ctx context.Context, volume string) error {
	all, err := c.devices(ctx)
	if err != nil {
		return err
	}
	for _, info := range c.layers(all)[0] {
		if info.Name == c.prefix()+volume {
			return c.released(ctx, info, volume)
		}
	}
	return nil
}

// foresee is Status for a verb that is not to be begun where it would be refused.
func (c *Member) foresee(ctx context.Context) (Status, error) {
	s, err := c.glance(ctx)
	if err == nil {
		err = s.belongs()
	}
	if err == nil {
		err = s.former(ctx)
	}
	var now Status
	if err == nil {
		now, err = s.status(ctx)
	}
	return now, errors.Join(err, s.close())
}
