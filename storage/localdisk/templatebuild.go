// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
	"diskhook/storage/transfer"
)

// create makes the copy of d, updating: a clone of the template of its base,
// which is made first if need be, or else an empty one. held is the lock of the
// disk.
func (s *Service) create(ctx context.Context, d Disk, source *imagecheck.Opened, held *lock.Lock, status *progress.Writer) (Copy, error) {
	base, why, err := s.templateOf(ctx, d, source)
	if err != nil {
		return Copy{}, err
	}
	if base != nil {
		defer base.Close()
		var c Copy
		if c, why, err = s.createClone(ctx, d, base, takes(d, source.Info), held, status); why == "" {
			return c, err
		}
	}
	if d.Template {
		return Copy{}, unshared(d, why)
	}
	s.Log.Info("copy all of it, not a clone of a template", "disk", d.String(), "why", why)
	b, size := s.backend(d), source.VirtualSize
	return s.reserve(ctx, b, d,
		func() error { return s.makeRoom(ctx, d.Backend, roomOf(ctx, b), []int64{size}) },
		func() (Copy, error) { return b.create(ctx, d, size) })
}

// createClone is create with a template; why is set, and nothing was made, when
// the template cannot be used.
func (s *Service) createClone(ctx context.Context, d Disk, base *base, size int64, held *lock.Lock, status *progress.Writer) (c Copy, why string, err error) {
	status.Set(progress.Copying)
	status.Note("the template of its base " + failure.OneLine(base.path))
	defer status.Note("")
	template, why, err := s.holdTemplate(ctx, d, base, size, held, status)
	if err != nil || why != "" {
		return c, why, err
	}
	defer template.lock.Release()
	b := s.backend(d)
	if err := s.touch(ctx, b, template.Copy); err != nil {
		s.Log.Warn("note the use of a template", "template", template.String(), "err", err)
	}
	s.Log.Info("clone", "disk", d.String(), "template", template.String(), "base", base.path)
	free, full := template.room, false
	if !b.lends() {
		free = roomOf(ctx, b) // others have taken some since
	}
	d.On = template.Name
	c, err = s.reserve(ctx, b, d, func() error {
		err := s.makeRoom(ctx, d.Backend, free, []int64{size})
		full = errors.Is(err, failure.NoSpace)
		return err
	}, func() (Copy, error) {
		if d.Template {
			return b.create(ctx, d, size)
		}
		return Copy{}, b.clone(ctx, template.Copy, d, size)
	})
	switch {
	case full && !b.clonesHold() && !d.Template:
		return c, "there is no room for it beside its template", nil
	case err == nil && !d.Template:
		template.lock.Release() // who would evict it need not wait any longer
		c, err = b.cloned(ctx, template.Copy, d, size)
	}
	return c, "", err
}

// build brings the template from absent or updating to ready.
func (s *Service) build(ctx context.Context, d Disk, base *base, c Copy, locks []*os.File, status *progress.Writer) (err error) {
	b := s.backend(d)
	shown := progress.NewWriter(s.templateStatus(base.template), base.template, "", "template "+failure.OneLine(base.path))
	defer func() {
		if err != nil {
			shown.Fail(failure.OneLine(err.Error()), "", failure.HintOf(err))
		} else {
			shown.Set(progress.Ready)
		}
	}()
	if c.State == Updating {
		if c, err = s.reopen(ctx, b, base, c); err != nil {
			return err
		}
	}
	if c.State != Updating {
		c, err = b.createTemplate(ctx, base.template, base.VirtualSize, base.tags())
		if err != nil {
			return err
		}
		if err := failpoint.Hit("template.created"); err != nil {
			return err
		}
	}
	shown.Set(progress.Copying)
	err = s.fillTemplate(ctx, d, base, c, locks, func(done, total int64) {
		shown.Advance(done, total)
		status.Advance(done, total)
	})
	if errors.Is(err, failure.NoSpace) || errors.Is(err, failure.Conflict) || errors.Is(err, failure.Problems) {
		s.dropTemplate(b, c) // there is nothing to go on with
	}
	if errors.Is(err, failure.NoSpace) {
		err = failure.Hint(err, "%s", b.moreRoom())
	}
	return err
}

// reopen goes on with a template that was interrupted, if it is known how far
// it was. If not it is removed; then its state is absent.
func (s *Service) reopen(ctx context.Context, b backend, base *base, c Copy) (Copy, error) {
	done, ok := transfer.Resumable(s.cursorFor(base.Opened, c), from(base.Opened, c), c.target())
	if ok {
		s.Log.Info("go on with the template", "template", c.String(), "done", done, "of", base.VirtualSize)
		return c, b.reopenTemplate(ctx, c)
	}
	if err := b.remove(ctx, c); err != nil {
		return c, err
	}
	if err := s.forget(c); err != nil {
		return c, err
	}
	return Copy{State: Absent}, failpoint.Hit("template.removed")
}

// fillTemplate copies the base and ends updating. The same holds as for a copy:
// the data has reached the disk, and the base is still what was read.
func (s *Service) fillTemplate(ctx context.Context, d Disk, base *base, c Copy, locks []*os.File, tell progress.Func) error {
	b := s.backend(d)
	if err := s.own(Observed{Disk: d, Copy: c}); err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(s.Layout.Cursors(), 0o700); err != nil {
		return fmt.Errorf("cursors: %w", err)
	}
	engine := &transfer.Engine{Run: s.Run, Log: s.Log}
	result, err := engine.Copy(ctx, from(base.Opened, c), c.target(), transfer.Options{
		Rate: int64(s.Config.Local.Rate), Locks: locks, User: s.reader(d),
		Progress: tell, Cursor: s.cursorFor(base.Opened, c), IOClass: s.ioClass(), Verify: d.Verify,
	})
	if err != nil {
		return err
	}
	s.Log.Info("copied", "template", c.String(), "method", result.Method, "copied", result.Copied, "resumed", result.Resumed)
	if err := failpoint.Hit("template.filled"); err != nil {
		return err
	}
	again, err := s.checker(d).Chain(ctx, d.Source[len(d.Source)-1:])
	if err != nil {
		return fmt.Errorf("look at it again: %w", err)
	}
	if again.Fingerprint != base.Fingerprint {
		err := failure.New(failure.Conflict, "%s: changed while it was copied", base.path)
		return failure.Hint(err, "stop what writes to it, then start again")
	}
	if err := b.finishTemplate(ctx, c); err != nil {
		return err
	}
	if err := failpoint.Hit("template.finished"); err != nil {
		return err
	}
	return s.forget(c)
}

// dropTemplate removes an unfinished template, under its lock. The caller's
// context may be what failed; what stays is removed by whoever comes next.
func (s *Service) dropTemplate(b backend, c Copy) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := b.remove(ctx, refreshed(ctx, b, c))
	if err == nil {
		err = s.forget(c)
	}
	if err != nil {
		s.Log.Warn("remove an unfinished template", "template", c.String(), "err", err)
	}
}

// refreshed is c as it is now, or as it was if that cannot be seen.
func refreshed(ctx context.Context, b backend, c Copy) Copy {
	if copies, err := b.find(ctx); err == nil {
		if now, ok := copies[c.Name]; ok {
			return now
		}
	}
	return c
}

// touch notes the day of use, once a day.
func (s *Service) touch(ctx context.Context, b backend, c Copy) error {
	today := usedTag(time.Now())
	if c.has(today) {
		return nil
	}
	var old []string
	for _, t := range c.Tags {
		if _, is := usedOn(t); is {
			old = append(old, t)
		}
	}
	return b.retag(ctx, c, []string{today}, old)
}

// tags are those of the template of a base.
func (b *base) tags() []string { return []string{tagTemplate, fromTag(b.path), usedTag(time.Now())} }

// clonePlan is the template that a copy would be a clone of, for dry runs.
type clonePlan struct {
	template, path string // its name, and the base
	size           int64  // bytes, of the base
	ready          bool   // if not it would be made
	tags           []string
}

// planClone returns nil where a copy would be no clone. It changes nothing.
func (s *Service) planClone(ctx context.Context, d Disk) *clonePlan {
	source, err := s.open(ctx, d)
	if err != nil {
		return nil
	}
	defer source.Close()
	base, _, err := s.templateOf(ctx, d, source)
	if err != nil || base == nil {
		return nil
	}
	defer base.Close()
	copies, err := s.backend(d).find(ctx)
	if err != nil {
		return nil
	}
	c, found, _ := base.pick(copies, func(c Copy) (useless, gone bool, err error) {
		why, _ := c.unlike(base)
		_, lying, doubt := s.needs(c, copies)
		return why != "", lying == 0 && doubt == "", nil
	})
	if found && (c.Sick != "" || !isTemplate(c)) {
		return nil
	}
	return &clonePlan{base.template, base.path, base.VirtualSize, c.State == Ready, base.tags()}
}
