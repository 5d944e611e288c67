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

// Growth is what Grow would find.
type Growth struct {
	None    bool     // the cluster uses the whole of global-thin-pool, which is as long already
	Waiting []string // the hosts that have to rebuild their metadata first
}

// Growth looks what Grow would do. With more bytes than the group has free this is a
// failure.NoSpace.
func (m *Master) Growth(ctx context.Context, bytes uint64) (Growth, error) {
	var out Growth
	err := m.read(ctx, false, func(s *session) error {
		var size uint64
		err := group.With(ctx, s.Group, layout.DataName, false, func(dev group.Volume) error {
			size = uint64(dev.Size())
			g, err := layout.ReadLabel(dev, s.Cluster)
			out.None = err == nil && g.Blocks == s.m.Blocks && bytes <= size
			if errors.Is(err, layout.ErrGrown) {
				return nil
			}
			return err
		})
		if err == nil && !out.None {
			out.Waiting, err = s.waiting(ctx, max(bytes, size))
		}
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
	return out, err
}

// waiting are the names of the hosts that do not know all blocks of a data volume of so
// many bytes.
func (s *session) waiting(ctx context.Context, bytes uint64) ([]string, error) {
	g, err := layout.GeometryFor(bytes, s.m.BlockSize)
	if err != nil {
		return nil, failure.Wrap(failure.Usage, err)
	}
	behind, err := s.behind(ctx, g.Blocks)
	return s.names(behind), err
}

func (s *session) grow(ctx context.Context, blocks uint64) error {
	if blocks == s.m.Blocks {
		return nil
	}
	waiting, err := s.behind(ctx, blocks)
	if err != nil {
		return err
	}
	next, err := ledger.Grow(s.m, blocks, func(host uint32) bool { return !waiting[host] })
	if len(waiting) > 0 && err != nil {
		return failure.Hint(err, "run `diskhook thin rebuild` on %s, then `diskhook thin grow` again", strings.Join(s.names(waiting), ", "))
	}
	if err != nil {
		return err
	}
	return s.commit(ctx, next)
}

// behind are the hosts, by number, whose metadata have fewer blocks.
func (s *session) behind(ctx context.Context, blocks uint64) (map[uint32]bool, error) {
	all := map[uint32]bool{}
	for _, h := range s.m.Hosts {
		if h.State == layout.Recovered {
			continue
		}
		known, err := s.knows(ctx, h)
		if err != nil {
			return nil, err
		}
		if known < blocks {
			all[h.Number] = true
		}
	}
	return all, nil
}

// names are those of hosts, in the order of the map.
func (s *session) names(of map[uint32]bool) []string {
	var names []string
	for _, h := range s.m.Hosts {
		if of[h.Number] {
			names = append(names, h.Name)
		}
	}
	return names
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
