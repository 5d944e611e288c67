// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
)

// The lock of a template is held alone by who makes or removes it, and shared by
// those who make copies of it: that it is there and ready is all they need, and
// twenty of them do not wait for each other.

// heldTemplate is a ready template whose lock is held.
type heldTemplate struct {
	Copy
	lock *lock.Lock
	room room // of its home, since the lock is held
}

// holdTemplate returns the template of a base, which it makes if nobody has; why
// is set when it cannot be used, or would take the room of the disk of that
// size. held is the lock of the disk.
func (s *Service) holdTemplate(ctx context.Context, d Disk, base *base, size int64, held *lock.Lock, status *progress.Writer) (heldTemplate, string, error) {
	for must := false; ; must = true {
		l, alone, err := s.lockTemplate(ctx, base.template, must, status)
		if err != nil {
			return heldTemplate{}, "", err
		}
		t, why, err := s.lookAtTemplate(ctx, d, base, alone)
		if alone && t.State != Ready && why == "" && err == nil {
			if why, err = s.makeTemplate(ctx, d, base, t, size, []*os.File{l.File(), held.File()}, status); why == "" && err == nil {
				t, why, err = s.lookAtTemplate(ctx, d, base, alone)
			}
			if t.State != Ready && why == "" && err == nil {
				err = failure.New(failure.Conflict, "its template %s went away", base.template)
			}
		}
		if t.State == Ready && why == "" && err == nil {
			t.lock = l
			return t, "", nil
		}
		l.Release()
		if why != "" || err != nil {
			return t, why, err
		}
	}
}

// lookAtTemplate is called with the lock of the template. Held alone it makes
// sure of what nothing has told yet, and removes what is of no use.
func (s *Service) lookAtTemplate(ctx context.Context, d Disk, base *base, alone bool) (t heldTemplate, why string, err error) {
	c, found, free, err := s.findTemplate(ctx, d, base, alone)
	if err != nil {
		return t, "", err
	}
	t = heldTemplate{Copy: c, room: free}
	switch {
	case !found:
		t.State = Absent
	case c.Sick != "":
		why = fmt.Sprintf("%s: %s", c, c.Sick)
	case !isTemplate(c):
		why = fmt.Sprintf("%s is not known to be a template", c)
	case c.State == Ready:
		err = s.forget(c) // of a crash just after it was finished
	}
	return t, why, err
}

// makeTemplate brings a template from absent or updating to ready. It is called
// with its lock, held alone; locks are held by whatever writes.
func (s *Service) makeTemplate(ctx context.Context, d Disk, base *base, t heldTemplate, size int64, locks []*os.File, status *progress.Writer) (why string, err error) {
	if t.State == Absent {
		err := s.makeRoom(ctx, d.Backend, t.room, []int64{base.VirtualSize, size})
		if errors.Is(err, failure.NoSpace) && !d.Template {
			return "there is no room for a template beside it", nil
		}
		if err != nil {
			return "", err
		}
	}
	if err := s.build(ctx, d, base, t.Copy, locks, status); err != nil {
		return "", fmt.Errorf("the template of its base %s: %w", failure.OneLine(base.path), err)
	}
	return "", nil
}

// lockTemplate waits for the lock of a template, with must until it is held
// alone. Meanwhile the disk's status shows how far the template is that somebody
// else makes.
func (s *Service) lockTemplate(ctx context.Context, name string, must bool, status *progress.Writer) (l *lock.Lock, alone bool, err error) {
	try := func() (*lock.Lock, bool, error) { return lock.TryEither(s.Layout.Locks(), templateLock(name)) }
	if must {
		try = func() (*lock.Lock, bool, error) {
			l, err := lock.Try(s.Layout.Locks(), templateLock(name))
			return l, true, err
		}
	}
	for began := time.Now(); ; {
		if l, alone, err = try(); !errors.Is(err, lock.ErrHeld) {
			return l, alone, err
		}
		if st, err := progress.Read(s.templateStatus(name)); err == nil && !st.State.Final() && st.Total > 0 {
			status.Advance(st.Done, st.Total)
		}
		select {
		case <-ctx.Done():
			return nil, false, fmt.Errorf("template %s: %w: %w", name, err, ctx.Err())
		case <-time.After(min(pollEvery, max(pollFirst, time.Since(began)/32))): // late by little of what it waited
		}
	}
}

func (s *Service) templateStatus(name string) string {
	return filepath.Join(s.Layout.Status(), "templates", name+".json")
}
