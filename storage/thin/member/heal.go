// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
)

// fullMetadata is how much of its metadata, in percent, a pool may use: at 100 the
// kernel makes it read-only, and guests get errors.
const fullMetadata = 80

// heal writes the metadata of a pool that ails anew, once, while guests run. One that is
// read-only already is only told of: it has to be stopped.
func (m *monitor) heal(ctx context.Context, seen Status) error {
	if err := m.writable(*seen.Pool); err != nil {
		return err
	}
	if m.ails(*seen.Pool, seen.Owned) == nil {
		return nil
	}
	return m.Member.do(ctx, m.begin, func(s *session) error {
		// What was seen may be of different moments; here nothing of this host changes.
		status, err := s.poolStatus(ctx)
		if errors.Is(err, failure.NotFound) { // it was stopped meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		ailment := s.ails(status, s.m.Owned(s.owner()).Blocks())
		if ailment == nil || m.anew == s.header.Image {
			return ailment
		}
		m.Log.Warn("the metadata of this host are written anew", "cluster", m.Name, "error", ailment)
		if err := s.handOver(ctx, s.header.Blocks); err != nil {
			return errors.Join(ailment, err)
		}
		m.anew = s.header.Image
		return nil
	})
}

// ails is what a pool must not go on with, nil if there is nothing. owned are the blocks
// that the map gives this host.
func (c *Member) ails(p devmapper.PoolStatus, owned uint64) error {
	switch {
	case p.Free() > owned:
		err := failure.New(failure.Problems, "thin cluster %s: the pool of this host could allocate %d blocks, of which it has %d only: somebody has changed disk 0", c.Name, p.Free(), owned)
		return failure.Hint(err, "stop the guests of this host, run `diskhook thin stop`, and see `diskhook thin check --offline` before anything is started")
	case p.MetadataUsed*100 >= p.MetadataTotal*fullMetadata:
		err := failure.New(failure.NoSpace, "thin cluster %s: %d of the %d blocks for metadata of this host are in use; when they are full, its guests get errors", c.Name, p.MetadataUsed, p.MetadataTotal)
		return failure.Hint(err, "extend the volume group, then run `diskhook thin rebuild`; or delete snapshots")
	}
	return nil
}
