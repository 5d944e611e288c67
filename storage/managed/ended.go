// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"

	"diskhook/storage/managed/database"
)

// The end of a domain releases its volumes. Where that failed, or was cut off,
// nobody comes back to it: the domain may never start again.

// runningNow tells of each domain whether it runs. Where nobody knows, all do.
func (s *Service) runningNow(ctx context.Context, claims map[string]database.Claim) func(domain string) bool {
	if s.Active == nil || len(claims) == 0 {
		return func(string) bool { return true }
	}
	active, err := s.Active(ctx)
	if err != nil {
		s.Log.WarnContext(ctx, "nobody tells which domains run: volumes of domains that have ended are not looked for", "err", err)
		return func(string) bool { return true }
	}
	return func(domain string) bool { return active[domain] }
}

// releaseEnded is Release for a domain that does not run. A start that has
// begun meanwhile keeps its volume: libvirt has the domain for active before
// its hook is called, and that waits for the volume's lock.
func (s *Service) releaseEnded(ctx context.Context, id string) error {
	claims, err := s.claims(ctx)
	c, there := claims[id]
	if err != nil || !there {
		return err
	}
	ended := func() bool { return !s.runningNow(ctx, claims)(c.Domain) }
	if c.Attached {
		return s.detach(ctx, id, c.Domain, func(database.Volume) (bool, error) { return ended(), nil })
	}
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if !ended() {
		return nil
	}
	return s.dropClaim(ctx, id, c.Domain)
}
