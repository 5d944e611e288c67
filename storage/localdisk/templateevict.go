// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
)

// EvictTemplate removes a template by name, however young it is, after its data
// was wiped as w says. One that is being made or cloned, or whose clones hold
// it, is a failure.Conflict. Blocks that clones share are their data, too, and
// are not wiped.
func (s *Service) EvictTemplate(ctx context.Context, name string, w Wipe) error {
	if !validTemplate(name) {
		return failure.New(failure.Usage, "template %q: not a name of one", name)
	}
	if err := s.runDirs(); err != nil {
		return err
	}
	all, err := s.Templates(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(t Template) bool { return t.Name == name })
	if i < 0 {
		return failure.Hint(failure.New(failure.NotFound, "template %s: there is none", name), "see `diskhook local gc`")
	}
	t := all[i]
	b := s.backend(Disk{Backend: t.Backend, Home: t.Home})
	evicted, err := s.evict(ctx, b, name, func(c Copy, clones int) error { return s.wipeTemplate(ctx, t.Backend, c, clones, w) })
	if err == nil && !evicted {
		why := t.inUse(b)
		if why == "" {
			why = "it came into use just now"
		}
		err = failure.New(failure.Conflict, "%s: %s", t.copy, why)
		err = failure.Hint(err, "wait for who works on it; as long as there are clones it costs next to nothing")
	}
	return err
}

func (s *Service) wipeTemplate(ctx context.Context, kind string, c Copy, clones int, w Wipe) error {
	if w == WipeNone || w == "" {
		return nil
	}
	if clones > 0 {
		s.Log.Info("not wiped: copies share its blocks", "template", c.String(), "clones", clones)
		return nil
	}
	f := foundCopy{Backend: kind, Copy: c}
	b := s.backend(f.disk())
	if v, is := b.(*volumes); is && w == WipeZero {
		if err := v.mayZero(ctx, c); err != nil {
			return err
		}
	}
	// A crash must not leave one that is wiped in part, and ready, or of which a
	// cursor says how much is there.
	var err error
	if f.Copy, err = b.spoil(ctx, c); err != nil {
		return err
	}
	if err := failpoint.Hit("template.spoiled"); err != nil {
		return err
	}
	if err := s.forget(c); err != nil {
		return err
	}
	if err := b.reopenTemplate(ctx, f.Copy); err != nil {
		return err
	}
	if err := s.wipe(ctx, f, w); err != nil {
		return err
	}
	return failpoint.Hit("template.wiped")
}

// makeRoom is the room of a backend, which free tells. Where there is too little, templates that
// nothing needs go, one after the other, until there is enough: a start counts
// for more than a cache, however young an entry is. None goes for nothing.
func (s *Service) makeRoom(ctx context.Context, kind string, free room, sizes []int64) error {
	b := backends()[kind](s)
	err := free(sizes)
	if !errors.Is(err, failure.NoSpace) {
		return err
	}
	for _, t := range s.wins(ctx, kind, sizes) {
		switch evicted, failed := s.evict(ctx, b, t.Name, nil); {
		case failed != nil:
			s.Log.Warn("make room", "template", t.copy.String(), "err", failed)
		case evicted:
			s.Log.Info("make room: removed", "template", t.copy.String(), "base", t.From, "last use", t.LastUse)
			if err = roomAfter(ctx, b, t.copy, sizes); !errors.Is(err, failure.NoSpace) {
				return err
			}
		}
	}
	return err
}

// roomAfter is the room when a copy was removed. XFS gives the blocks of a file
// back a moment after the file is gone.
func roomAfter(ctx context.Context, b backend, gone Copy, sizes []int64) error {
	for deadline := time.Now().Add(time.Second); ; {
		err := b.room(ctx, sizes)
		if !errors.Is(err, failure.NoSpace) || !gone.file() || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// wins are the templates whose end may make room for copies of these sizes, in
// the order in which they go; none if all of them hold too little. What clones
// share with a template is not won by its end.
func (s *Service) wins(ctx context.Context, kind string, sizes []int64) []Template {
	b := backends()[kind](s)
	templates, err := s.templatesOf(ctx, kind, b)
	if err != nil {
		s.Log.Warn("make room: templates", "err", err)
		return nil
	}
	templates = slices.DeleteFunc(templates, func(t Template) bool { return t.Clones > 0 || t.inUse(b) != "" })
	gone := make([]Copy, len(templates))
	for i, t := range templates {
		gone[i] = t.copy
	}
	if b.roomWithout(ctx, gone, sizes) != nil {
		return nil
	}
	return templates
}

// evict removes a template, if it still may go when its lock is held; nobody
// waits for that lock. before, if not nil, is called on what is going to go.
func (s *Service) evict(ctx context.Context, b backend, name string, before func(c Copy, clones int) error) (bool, error) {
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
	if !found || !isTemplate(c) || !b.keeps(c) {
		return false, nil
	}
	clones, lying, doubt := s.needs(c, copies)
	if lying > 0 || doubt != "" || clones > 0 && b.clonesHold() {
		return false, nil
	}
	if before != nil {
		if err := before(c, clones); err != nil {
			return false, err
		}
	}
	if err := b.remove(ctx, c); err != nil {
		return false, err
	}
	_ = os.Remove(s.templateStatus(name))
	if err := failpoint.Hit("template.evicted"); err != nil {
		return true, err
	}
	return true, s.forget(c)
}
