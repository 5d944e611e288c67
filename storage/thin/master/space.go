// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/request"
)

// grant gives as many blocks as there are, up to those wanted.
func grant(m layout.Map, to uint32, r request.Grant) (layout.Map, error) {
	least := r.Least
	if least == 0 {
		least = r.Blocks
	}
	free := m.Owned(layout.Owner{Kind: layout.Free}).Blocks()
	next, _, err := ledger.Grant(m, to, max(least, min(r.Blocks, free)))
	return next, err
}

// room makes a volume longer that its host writes: its own, or the mapping of a
// volume that it has or that nobody has.
func (s *session) room(ctx context.Context, m layout.Map, from uint32, r request.Room) error {
	if r.Volume == 0 {
		for _, h := range m.Hosts {
			if h.Number == from {
				return s.Group.Extend(ctx, layout.Host.Name(h.UUID), r.Bytes)
			}
		}
	}
	v, err := find(m, r.Volume)
	if err != nil {
		return err
	}
	if v.State.On() && v.Host != from {
		err := failure.New(failure.Conflict, "volume %s: it is at host %d", v.Name, v.Host)
		return failure.Hint(err, "see `diskhook thin status`")
	}
	return s.Group.Extend(ctx, layout.Thin.Name(v.UUID), r.Bytes)
}

// leave takes back all that a host has, which says itself that it is done.
func leave(m layout.Map, from uint32) (layout.Map, error) {
	next, err := ledger.Fence(m, from, "it left the cluster by itself")
	if err != nil {
		return m, err
	}
	return ledger.FinishRecovery(next, from)
}
