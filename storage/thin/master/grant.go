// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

// Grant gives a member so many blocks that it did not ask for. They are its own at
// once, and serve it from when it uses them. Where fewer are free, this is a
// failure.NoSpace.
func (m *Master) Grant(ctx context.Context, host string, blocks uint64) error {
	return m.change(ctx, func(s *session) error {
		h, err := s.hostNamed(host)
		if err != nil {
			return err
		}
		if h.State != layout.Member {
			return failure.New(failure.Precondition, "host %s: it is no member of the cluster any more (%s)", h.Name, h.Evidence)
		}
		next, _, err := ledger.Grant(s.m, h.Number, blocks)
		if err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		return s.commit(ctx, next)
	})
}
