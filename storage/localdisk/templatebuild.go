// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	if err := s.makeRoom(ctx, d.Backend, []int64{source.VirtualSize}); err != nil {
		return Copy{}, err
	}
	return s.backend(d).create(ctx, d, source.VirtualSize)
}

// createClone is create with a template; why is set, and nothing was made, when
// the template cannot be used.
func (s *Service) createClone(ctx context.Context, d Disk, base *base, size int64, held *lock.Lock, status *progress.Writer) (c Copy, why string, err error) {
	status.Set(progress.Copying)
	status.Note("the template of its base " + failure.OneLine(base.path))
	defer status.Note("")
	l, err := s.lockTemplate(ctx, base.template, status)
	if err != nil {
		return c, "", err
	}
	defer l.Release()
	b := s.backend(d)
	template, why, err := s.template(ctx, d, base, size, []*os.File{l.File(), held.File()}, status)
	if why != "" || err != nil {
		return c, why, err
	}
	// What was free before a wait need not be so now. Without the template there
	// may be enough.
	if err := s.makeRoom(ctx, d.Backend, []int64{size}); errors.Is(err, failure.NoSpace) && !b.clonesHold() && !d.Template {
		return c, "there is no room for it beside its template", nil
	} else if err != nil {
		return c, "", err
	}
	if err := s.touch(ctx, b, template); err != nil {
		s.Log.Warn("note the use of a template", "template", template.String(), "err", err)
	}
	s.Log.Info("clone", "disk", d.String(), "template", template.String(), "base", base.path)
	if d.Template {
		d.On = template.Name
		c, err = b.create(ctx, d, size)
	} else {
		c, err = b.clone(ctx, template, d, size)
	}
	return c, "", err
}

// lockTemplate waits for the lock of a template. Meanwhile the disk's status
// shows how far the template is that somebody else makes.
func (s *Service) lockTemplate(ctx context.Context, name string, status *progress.Writer) (*lock.Lock, error) {
	for {
		l, err := lock.Try(s.Layout.Locks(), templateLock(name))
		if !errors.Is(err, lock.ErrHeld) {
			return l, err
		}
		if st, err := progress.Read(s.templateStatus(name)); err == nil && !st.State.Final() && st.Total > 0 {
			status.Advance(st.Done, st.Total)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("template %s: %w: %w", name, err, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

func (s *Service) templateStatus(name string) string {
	return filepath.Join(s.Layout.Status(), "templates", name+".json")
}

// template returns the template of a base, ready, whatever state it was in; why
// is set when it cannot be used, or would take the room of the disk of that
// size. It is called under its lock; locks are held by whatever writes.
func (s *Service) template(ctx context.Context, d Disk, base *base, size int64, locks []*os.File, status *progress.Writer) (c Copy, why string, err error) {
	b := s.backend(d)
	copies, err := b.find(ctx)
	if err != nil {
		return c, "", err
	}
	c, found := copies[base.template]
	switch {
	case !found:
		err := s.makeRoom(ctx, d.Backend, []int64{base.VirtualSize, size})
		if errors.Is(err, failure.NoSpace) && !d.Template {
			return c, "there is no room for a template beside it", nil
		}
		if err != nil {
			return c, "", err
		}
	case c.Sick != "":
		return c, fmt.Sprintf("%s: %s", c, c.Sick), nil
	case !isTemplate(c):
		return c, fmt.Sprintf("%s is not known to be a template", c), nil
	case c.State == Ready:
		return c, "", s.forget(c) // of a crash just after it was finished
	}
	if c, err = s.build(ctx, d, base, c, locks, status); err != nil {
		return c, "", fmt.Errorf("the template of its base %s: %w", failure.OneLine(base.path), err)
	}
	return c, "", nil
}

// build brings the template from absent or updating to ready.
func (s *Service) build(ctx context.Context, d Disk, base *base, c Copy, locks []*os.File, status *progress.Writer) (_ Copy, err error) {
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
			return c, err
		}
	}
	if c.State != Updating {
		c, err = b.createTemplate(ctx, base.template, base.VirtualSize, base.tags())
		if err != nil {
			return c, err
		}
		if err := failpoint.Hit("template.created"); err != nil {
			return c, err
		}
	}
	shown.Set(progress.Copying)
	err = s.fillTemplate(ctx, d, base, c, locks, func(done, total int64) {
		shown.Advance(done, total)
		status.Advance(done, total)
	})
	if errors.Is(err, failure.NoSpace) || errors.Is(err, failure.Conflict) {
		s.dropTemplate(b, c) // there is nothing to go on with
	}
	if errors.Is(err, failure.NoSpace) {
		err = failure.Hint(err, "%s", b.moreRoom())
	}
	if err != nil {
		return c, err
	}
	copies, err := b.find(ctx)
	if err != nil {
		return c, err
	}
	return copies[c.Name], nil
}

// reopen goes on with a template that was interrupted, if it is known how far
// it was. If not it is removed; then its state is absent.
func (s *Service) reopen(ctx context.Context, b backend, base *base, c Copy) (Copy, error) {
	target, err := s.targetOf(ctx, b, c)
	if err != nil {
		return c, err
	}
	done, ok := transfer.Resumable(s.cursorFor(base.Opened, c), from(base.Opened, c), target)
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
	target, err := s.targetOf(ctx, b, c)
	if err != nil {
		return err
	}
	if err := s.own(Observed{Disk: d, Copy: c}); err != nil {
		return err
	}
	if err := atomicfile.MkdirAll(s.Layout.Cursors(), 0o700); err != nil {
		return fmt.Errorf("cursors: %w", err)
	}
	engine := &transfer.Engine{Run: s.Run, Log: s.Log}
	result, err := engine.Copy(ctx, from(base.Opened, c), target, transfer.Options{
		Rate: int64(s.Config.Local.Rate), Locks: locks, User: s.reader(d),
		Progress: tell, Cursor: s.cursorFor(base.Opened, c), IOClass: transfer.IOBestEffort,
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
	c, found := copies[base.template]
	if found && (c.Sick != "" || !isTemplate(c)) {
		return nil
	}
	return &clonePlan{base.template, base.path, base.VirtualSize, c.State == Ready, base.tags()}
}
