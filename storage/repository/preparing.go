// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"fmt"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// preparingLock is shared, on this host, by who notes that he uses an image of a repository.
func preparingLock(repoID string) string { return "repository-" + repoID + "-preparing" }

// nobodyPrepares has everybody who is about to use an image of a repository here wait, and find
// out then that it is connected no more.
func (s *Service) nobodyPrepares(ctx context.Context, repoID string) (*lock.Lock, error) {
	waiting, cancel := context.WithTimeout(ctx, s.Deadline)
	defer cancel()
	l, err := lock.Acquire(waiting, s.Layout.Locks(), preparingLock(repoID))
	if err != nil {
		err = fmt.Errorf("repository %s: %w: an image of it is being prepared: %w", repoID, ErrBusy, err)
		return nil, failure.Hint(err, "try again, or `diskhook repo disconnect --force %s`", repoID)
	}
	return l, nil
}

// stayConnected keeps a repository connected here until release is called. ErrNotConnected.
func (s *Service) stayConnected(ctx context.Context, r *repo) (release func(), err error) {
	if err := atomicfile.MkdirAll(s.Layout.Locks(), 0o755); err != nil {
		return nil, err
	}
	l, err := lock.Share(ctx, s.Layout.Locks(), preparingLock(r.id))
	if err != nil {
		return nil, fmt.Errorf("repository %s: it is being disconnected: %w", r.id, err)
	}
	c, err := s.Connection(r.id)
	if err == nil && c.Nonce != r.about.Nonce {
		err = fmt.Errorf("repository %s: %w: another one is by now", r.id, ErrNotConnected)
	}
	if err != nil {
		l.Release()
		return nil, err
	}
	return l.Release, nil
}
