// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// Start starts this host's pool, and on it every volume that the map has attached
// here; where they run already, it puts right what is not as it is to be. Metadata
// that need a check are checked, and written anew onto the other window. A
// volume that is being detached gets no device: its mapping is on its way out.
func (c *Member) Start(ctx context.Context) error {
	return c.do(ctx, c.open, func(s *session) error {
		if err := s.data(ctx); err != nil {
			return err
		}
		runs, err := s.running(ctx)
		if err != nil {
			return err
		}
		if !runs {
			if err := s.answer(ctx); err != nil {
				return err
			}
			if err := s.inspect(ctx); err != nil {
				return err
			}
		}
		volumes, err := s.mapped(ctx)
		if err != nil {
			return err
		}
		if err := s.converge(ctx, volumes); err != nil {
			return err
		}
		// Only now the kernel's module is certainly there.
		if err := s.Mapper.SetNoSpaceTimeout(noSpaceTimeout); err != nil {
			return err
		}
		if err := s.settle(ctx); err != nil {
			return err
		}
		return s.finishDetaches(ctx)
	})
}

// do runs a verb in a session.
func (c *Member) do(ctx context.Context, open func(context.Context) (*session, error), verb func(*session) error) error {
	s, err := open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(verb(s), s.end())
}

// data has the data volume active here, and makes sure that it is the cluster's.
func (s *session) data(ctx context.Context) error {
	return group.With(ctx, s.Group, layout.DataName, false, func(dev group.Volume) error {
		g, err := layout.ReadLabel(dev, s.Cluster)
		if err != nil && !errors.Is(err, layout.ErrGrown) { // the pool goes on with what it knows
			return err
		}
		if g.BlockSize != s.header.BlockSize {
			err := failure.New(failure.Problems, "%s: it has blocks of %d bytes, this host's metadata blocks of %d", dev.Name(), g.BlockSize, s.header.BlockSize)
			return failure.Hint(err, "run `diskhook thin check`")
		}
		return nil
	})
}

// inspect looks at the metadata before a pool runs on them: they must be whole, and
// withhold every block that is not this host's.
func (s *session) inspect(ctx context.Context) error {
	if s.untouched() {
		return s.handOver(ctx, s.header.Blocks)
	}
	needs := false
	err := s.read(ctx, func(r *metadata.Reader) error {
		needs = r.Superblock().NeedsCheck
		if r.Superblock().DataBlocks != s.header.Blocks {
			err := failure.New(failure.Problems, "the metadata of this host are of %d blocks, its header says %d", r.Superblock().DataBlocks, s.header.Blocks)
			return failure.Hint(err, "run `diskhook thin check`")
		}
		return s.withholds(ctx, r)
	})
	if errors.Is(err, metadata.ErrDamaged) {
		return failure.Hint(failure.Wrap(failure.Problems, fmt.Errorf("metadata window %s of this host: %w", letter(s.header.Active), err)),
			"run `diskhook thin stop` here, then on the master `diskhook thin on-fenced %[1]s`, `diskhook thin recover --repair %[1]s` and `diskhook thin init-host --rejoin %[1]s`", s.header.Name)
	}
	if err != nil || !needs {
		return err
	}
	s.Log.Warn("the metadata of this host need a check: they are written anew", "cluster", s.Name, "window", letter(s.header.Active))
	return s.handOver(ctx, s.header.Blocks)
}

// withholds refuses metadata from which a block could be allocated that is not this
// host's: a grant that was not applied is fine, the other way round is not.
func (s *session) withholds(ctx context.Context, r *metadata.Reader) error {
	cluster := invariant.Cluster{Map: s.m}
	image, err := handover.Image(ctx, r)
	if err != nil {
		return err
	}
	cluster.Images = map[uint32]invariant.Image{s.header.Number: image}
	foreign := extent.All(s.header.Blocks).Minus(s.m.Owned(s.owner())).Minus(cluster.Withheld(s.header.Number))
	if foreign.Empty() {
		return nil
	}
	err = failure.New(failure.Problems, "the metadata of this host would let it write to blocks %v, which are not its own", foreign)
	return failure.Hint(err, "run `diskhook thin check`")
}

func (s *session) owner() layout.Owner {
	return layout.Owner{Kind: layout.OfHost, Number: s.header.Number}
}

// unused refuses a volume that a domain has, or that somebody has open. Whatever
// takes a volume away from this host asks that first.
func (s *session) unused(ctx context.Context, v layout.VolumeRecord) error {
	if err := s.unclaimed(v.Name, s.holder); err != nil {
		return err
	}
	return s.closed(ctx, v)
}

// closed refuses a volume that somebody has open, and goes on having open.
func (s *session) closed(ctx context.Context, v layout.VolumeRecord) error {
	info, err := s.present(ctx, s.deviceName(v.Name))
	if err != nil || info == nil {
		return err
	}
	return s.released(ctx, *info, v.Name)
}

// removeDevice takes a volume's device away. One that was left suspended would wait
// for ever. Whether a domain has the volume is for the caller to ask.
func (s *session) removeDevice(ctx context.Context, v layout.VolumeRecord) error {
	if err := s.closed(ctx, v); err != nil {
		return err
	}
	if err := s.unlink(v.Name); err != nil {
		return err
	}
	info, err := s.present(ctx, s.deviceName(v.Name))
	if err != nil || info == nil {
		return err
	}
	return s.Mapper.Remove(ctx, info.Name)
}
