// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
)

// devices are the mapped devices of this cluster that the kernel has, of whichever
// membership of this host. Those that somebody else gave such a name are not ours.
func (c *Member) devices(ctx context.Context) ([]devmapper.Info, error) {
	names, err := c.Mapper.List(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []devmapper.Info
	for _, name := range names {
		if !strings.HasPrefix(name, c.prefix()) {
			continue
		}
		info, err := c.Mapper.Info(ctx, name)
		switch {
		case errors.Is(err, failure.NotFound): // gone meanwhile
		case err != nil:
			return nil, err
		case strings.HasPrefix(info.UUID, c.uuidPrefix()):
			all = append(all, info)
		}
	}
	return all, nil
}

// former refuses devices of a membership that ended: the host was held for fenced or
// left, and joined again, while they ran on. Their pool knows as free what may be
// anybody's by now, and writes to metadata that count no more.
func (s *session) former(ctx context.Context) error {
	all, err := s.devices(ctx)
	if err != nil {
		return err
	}
	for _, info := range all {
		if strings.HasPrefix(info.UUID, s.uuidOf("")) {
			continue
		}
		err := failure.New(failure.Conflict, "mapped device %s: %w of host %s in cluster %s and must not be used", info.Name, errFormer, s.header.Name, s.Name)
		return failure.Hint(err, "stop the guests that have such devices, then run `diskhook thin stop` and `diskhook thin start`")
	}
	return nil
}

// layers is the order in which devices are taken away: what lies on others first.
func (c *Member) layers(all []devmapper.Info) [3][]devmapper.Info {
	var of [3][]devmapper.Info
	for _, info := range all {
		kind, _, internal := strings.Cut(strings.TrimPrefix(info.Name, c.prefix()), "+")
		layer := 0
		switch {
		case internal && kind == "pool":
			layer = 1
		case internal && kind == "metadata":
			layer = 2
		}
		of[layer] = append(of[layer], info)
	}
	return of
}

// Stop takes every device of this host's pool away, and the pool, by what the kernel
// has: also where this host is no member any more, and where the disk cannot be
// read. Volumes stay attached to the host: nobody else gets them, and Start has them
// again. A volume that is in use, or that a domain has, is a failure.Conflict, and
// everything runs on.
func (c *Member) Stop(ctx context.Context) (err error) {
	l, err := c.locked(ctx)
	if err != nil {
		return err
	}
	defer l.Release()
	all, err := c.devices(ctx)
	if err != nil {
		return err
	}
	if err := c.removable(ctx, all); err != nil {
		return err
	}
	for _, layer := range c.layers(all) {
		for _, info := range layer {
			if err := c.unlink(strings.TrimPrefix(info.Name, c.prefix())); err != nil {
				return err
			}
			if err := c.Mapper.Remove(ctx, info.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// removable refuses a volume that is in use, or that a domain has.
func (c *Member) removable(ctx context.Context, all []devmapper.Info) error {
	for _, info := range c.layers(all)[0] {
		volume := strings.TrimPrefix(info.Name, c.prefix())
		if err := c.unclaimed(volume, ""); err != nil {
			return err
		}
		if err := c.released(ctx, info, volume); err != nil {
			return err
		}
	}
	return nil
}

// releasePoll is how often a device is looked at that is still open.
const releasePoll = 100 * time.Millisecond

// released refuses the device of a volume that stays open for longer than those have
// it who only look: udev does at a device that a guest has just closed, and each
// command of LVM at all devices.
func (c *Member) released(ctx context.Context, info devmapper.Info, volume string) error {
	var err error
	for until := time.Now().Add(c.Closing); info.Open > 0; {
		if !time.Now().Before(until) {
			return c.inUse(volume)
		}
		select {
		case <-time.After(releasePoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		info, err = c.Mapper.Info(ctx, info.Name)
		switch {
		case errors.Is(err, failure.NotFound):
			return nil
		case err != nil:
			return err
		}
	}
	return nil
}

func (c *Member) inUse(volume string) error {
	err := failure.New(failure.Conflict, "volume %s: its device is in use", volume)
	return failure.Hint(err, "stop the guest that has it; `fuser -v %s` says who it is", c.Path(volume))
}
