// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"

	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// Rebuild writes this host's metadata anew, with disk 0 in as few pieces as there
// are, and without parked devices. Where the data volume was extended, the new
// metadata withhold the new blocks, which the master waits for before it gives any
// of them to anybody. Guests are held back for a moment; a pool that does not run
// keeps not running.
func (c *Member) Rebuild(ctx context.Context) error {
	return c.do(ctx, c.begin, func(s *session) error {
		blocks, err := s.extended(ctx)
		if err != nil {
			return err
		}
		return s.handOver(ctx, blocks)
	})
}

// extended is how many blocks the data volume has, by what it is long now.
func (s *session) extended(ctx context.Context) (blocks uint64, err error) {
	err = group.With(ctx, s.Group, layout.DataName, false, func(dev group.Volume) error {
		g, err := layout.ReadLabel(dev, s.Cluster)
		if errors.Is(err, layout.ErrGrown) {
			g, err = layout.GeometryFor(uint64(dev.Size()), s.header.BlockSize)
		}
		blocks = max(g.Blocks, s.header.Blocks)
		return err
	})
	return blocks, err
}
