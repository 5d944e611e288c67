// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// makeRoom is the room of a backend. Where there is too little, templates that
// nothing needs go, one after the other, until there is enough: a start counts
// for more than a cache, however young an entry is.
func (s *Service) makeRoom(ctx context.Context, kind string, sizes []int64) error {
	b := backends()[kind](s)
	err := b.room(ctx, sizes)
	if !errors.Is(err, failure.NoSpace) {
		return err
	}
	templates, unseen := s.templatesOf(ctx, kind, b)
	if unseen != nil {
		s.Log.Warn("make room: templates", "err", unseen)
	}
	for _, t := range templates {
		if t.inUse(b) != "" {
			continue
		}
		switch evicted, failed := s.evict(ctx, b, t.Name, nil); {
		case failed != nil:
			s.Log.Warn("make room", "template", t.copy.String(), "err", failed)
		case evicted:
			s.Log.Info("make room: removed", "template", t.copy.String(), "base", t.From, "last use", t.LastUse)
			if err = b.room(ctx, sizes); !errors.Is(err, failure.NoSpace) {
				return err
			}
		}
	}
	return err
}

// mayMakeRoom says that makeRoom has something to take.
func (s *Service) mayMakeRoom(ctx context.Context, kind string) bool {
	b := backends()[kind](s)
	templates, err := s.templatesOf(ctx, kind, b)
	for _, t := range templates {
		if t.inUse(b) == "" {
			return err == nil
		}
	}
	return false
}

// evict removes a template, if it still may go when its lock is held; nobody
// waits for that lock. before, if not nil, is called on what is going to go.
func (s *Service) evict(ctx context.Context, b backend, name string, before func(Copy) error) (bool, error) {
	l, err := lock.Try(s.Layout.Locks(), templateLock(name))
	if errors.Is(err, lock.ErrHeld) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.Release()
	copies, err := b.find(ctx)
	if err != nil {
		return false, err
	}
	c, found := copies[name]
	if !found || !isTemplate(c) {
		return false, nil
	}
	for _, other := range copies {
		if other.Origin == name && b.clonesHold() {
			return false, nil
		}
	}
	if before != nil {
		if err := before(c); err != nil {
			return false, err
		}
	}
	if err := b.remove(ctx, c); err != nil {
		return false, err
	}
	if err := failpoint.Hit("template.evicted"); err != nil {
		return true, err
	}
	return true, s.forget(c)
}
