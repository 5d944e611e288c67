// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

// Grow makes the cluster use the whole of a global-thin-pool that became longer,
// after making it so many bytes long, if bytes is not 0. To a pool that does not
// withhold the new blocks they would be free, on every host. So each member has to
// rebuild its metadata for them first; as long as one has not, this is a
// failure.Precondition that names it, and run again it goes on.
func (m *Master) Grow(ctx context.Context, bytes uint64) (layout.Geometry, error) {
	var g layout.Geometry
	err := m.change(ctx, func(s *session) error {
		if bytes != 0 {
			if err := s.Group.Extend(ctx, layout.DataName, bytes); err != nil {
				return err
			}
		}
		return group.With(ctx, s.Group, layout.DataName, true, func(dev group.Volume) error {
			if _, err := layout.ReadLabel(dev, s.Cluster); err != nil && !errors.Is(err, layout.ErrGrown) {
				return err
			}
			var err error
			if g, err = layout.GeometryFor(uint64(dev.Size()), s.m.BlockSize); err != nil {
				return failure.Wrap(failure.Usage, err)
			}
			if err := s.grow(ctx, g.Blocks); err != nil {
				return err
			}
			return layout.GrowLabel(dev, s.Cluster, s.stamp.Epoch, g)
		})
	})
	return g, err
}

// Grown says that Grow would change nothing: the cluster uses the whole of
// global-thin-pool, which has bytes already. With more bytes than the group has free
// this is a failure.NoSpace.
func (m *Master) Grown(ctx context.Context, bytes uint64) (bool, error) {
	var all bool
	err := m.read(ctx, false, func(s *session) error {
		var size uint64
		err := group.With(ctx, s.Group, layout.DataName, false, func(dev group.Volume) error {
			size = uint64(dev.Size())
			g, err := layout.ReadLabel(dev, s.Cluster)
			all = err == nil && g.Blocks == s.m.Blocks && bytes <= size
			if errors.Is(err, layout.ErrGrown) {
				return nil
			}
			return err
		})
		if err != nil || bytes <= size {
			return err
		}
		left, err := s.Group.Free(ctx)
		if err == nil && left < bytes-size {
			err = failure.New(failure.NoSpace, "%s: %d bytes more are wanted, %d are free", layout.DataName, bytes-size, left)
			err = failure.Hint(err, "extend the LUN, and with it the volume group")
		}
		return err
	})
	return all, err
}

func (s *session) grow(ctx context.Context, blocks uint64) error {
	if blocks == s.m.Blocks {
		return nil
	}
	waiting := map[uint32]string{}
	for _, h := range s.m.Hosts {
		if h.State == layout.Recovered {
			continue
		}
		known, err := s.knows(ctx, h)
		if err != nil {
			return err
		}
		if known < blocks {
			waiting[h.Number] = h.Name
		}
	}
	next, err := ledger.Grow(s.m, blocks, func(host uint32) bool { return waiting[host] == "" })
	if len(waiting) > 0 && err != nil {
		var names []string
		for _, h := range s.m.Hosts {
			if waiting[h.Number] != "" {
				names = append(names, h.Name)
			}
		}
		return failure.Hint(err, "run `diskhook thin rebuild` on %s, then `diskhook thin grow` again", strings.Join(names, ", "))
	}
	if err != nil {
		return err
	}
	return s.commit(ctx, next)
}

// knows is how many blocks a host's metadata have. One that never had any knows none.
func (s *session) knows(ctx context.Context, h layout.HostRecord) (uint64, error) {
	var blocks uint64
	err := s.onHost(ctx, h.UUID, false, func(dev group.Volume) error {
		header, _, err := layout.ReadHost(dev, s.Cluster, h.UUID)
		if errors.Is(err, layout.ErrEmpty) {
			return nil
		}
		blocks = header.Blocks
		return err
	})
	return blocks, err
}
