// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

// Fence holds a host for fenced: nothing that it asks for is done any more, and its
// metadata may be read (Recover). evidence says how anybody knows that it cannot
// write; without it this is a failure.Precondition. epoch is that of the master
// who had it fenced, 0 this one; another is layout.ErrStale.
func (m *Master) Fence(ctx context.Context, host string, epoch uint64, evidence string) error {
	return m.change(ctx, func(s *session) error {
		if epoch != 0 && epoch != s.stamp.Epoch {
			return failure.Hint(failure.New(failure.Conflict, "host %s: %w: it was fenced in epoch %d, this is epoch %d", host, layout.ErrStale, epoch, s.stamp.Epoch),
				"have it fenced again, and run `diskhook thin on-fenced %s` with the epoch of this master", host)
		}
		h, err := s.hostNamed(host)
		if err != nil {
			return err
		}
		next, err := ledger.Fence(s.m, h.Number, evidence)
		if err != nil || h.State != layout.Member {
			return err
		}
		return s.commit(ctx, next)
	})
}

// RemoveHost forgets a host that left or was recovered: its UUID.host and its
// record. It must not have its pool any more, whose metadata are in there.
func (m *Master) RemoveHost(ctx context.Context, host string) error {
	return m.change(ctx, func(s *session) error {
		h, err := s.hostNamed(host)
		if err != nil {
			return err
		}
		next, err := ledger.Forget(s.m, h.Number)
		if err != nil {
			return err
		}
		// Before the record goes, so that a crash leaves a host to remove again.
		if err := s.Group.Remove(ctx, layout.Host.Name(h.UUID)); err != nil {
			return err
		}
		for _, former := range next.Hosts { // of the same host, under older numbers
			if former.UUID == h.UUID {
				if next, err = ledger.Forget(next, former.Number); err != nil {
					return err
				}
			}
		}
		return s.commit(ctx, next)
	})
}

// seal writes a fenced host's header under an epoch that the host does not have:
// should it live, its own commits are refused from now on (layout.ErrStale).
func (s *session) seal(dev group.Volume, h layout.HostRecord, header layout.HostHeader, last layout.Stamp) error {
	epoch := s.stamp.Epoch + 1
	if last.Epoch >= epoch {
		return nil
	}
	_, err := layout.CommitHost(dev, s.Cluster, h.UUID, last, epoch, header)
	return err
}
