// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"encoding/json"
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

// Fill is the copy process. It takes the disk's lock, looks again, and brings
// the copy from whatever state it is in to ready; when it already is, there is
// nothing to do. How it ends is told by the status file as well as by the
// error. The job file goes when the lock is held.
func (s *Service) Fill(ctx context.Context, jobFile string) error {
	job, err := readJob(jobFile)
	if err != nil {
		return err
	}
	d := job.Disk
	if err := s.runDirs(); err != nil {
		return err
	}
	held, err := lock.Acquire(ctx, s.Layout.Locks(), lockName(d.Domain, d.Key()))
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	defer held.Release()
	cancelled := s.cancelledSince(jobFile, d)
	// From here on the lock says that somebody is at work; see wait.
	if err := os.Remove(jobFile); err != nil {
		return fmt.Errorf("job %w", err)
	}
	status := progress.NewWriter(s.statusPath(d.Domain, d.Key()), job.ID, d.DomainName, d.String())
	status.Set(progress.Locked)
	ctx, stop := s.cancellable(ctx, d, func(string) error { return errCancelled })
	defer stop()
	if cancelled {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		cancel(errCancelled)
	}
	if err := s.fill(ctx, d, held, status); err != nil {
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			err = fmt.Errorf("%s: %w", d, cause)
		}
		if errors.Is(err, errCancelled) {
			status.Cancelled()
		}
		s.Log.Error("fill", "disk", d.String(), "err", err)
		code := ""
		if k := failure.KindOf(err); k != nil {
			code = k.Code
		}
		status.Fail(failure.OneLine(err.Error()), code, failure.HintOf(err))
		return err
	}
	status.Set(progress.Ready)
	return nil
}

func readJob(path string) (Job, error) {
	var job Job
	b, err := os.ReadFile(path)
	if err != nil {
		return job, fmt.Errorf("job %w", err)
	}
	if err := json.Unmarshal(b, &job); err != nil {
		return job, failure.New(failure.Usage, "job %s: %w", path, err)
	}
	if err := job.Disk.Validate(); err != nil {
		return job, fmt.Errorf("job %s: %w", path, err)
	}
	return job, nil
}

// fill does the work under the lock.
func (s *Service) fill(ctx context.Context, d Disk, held *lock.Lock, status *progress.Writer) error {
	notBusy := func(Disk) (bool, error) { return false, nil }
	observed, err := s.observe(ctx, []Disk{d}, notBusy)
	if err != nil {
		return err
	}
	if err := s.markStale(ctx, observed); err != nil {
		s.Log.Warn("look at the source", "err", err) // a start does without it
	}
	s.lookBelow(ctx, observed)
	o := observed[0]
	decision := Decide(o)
	s.Log.Info("fill", "disk", d.String(), "copy", o.Copy.String(), "state", o.Copy.State, "action", decision.Action)
	switch decision.Action {
	case Veto:
		return decision.Err
	case Use, Adopt:
		return nil // somebody was faster
	}
	d, drop, err := s.hold(ctx, d)
	if err != nil {
		return unreadable(d, err)
	}
	defer drop()
	o.Disk.Source, o.Disk.held = d.Source, d.held
	switch decision.Action {
	case Retire:
		if err := s.giveUp(ctx, *o.Receipt); err != nil {
			return err
		}
		o.Receipt = nil // what is unfinished under the new leaf's name goes, too
		if err := s.clear(ctx, o); err != nil {
			return err
		}
	case Resume:
		if !d.overlaid() {
			return s.goOn(ctx, o, held, status)
		}
		fallthrough
	case Replace, Create:
		if err := s.clear(ctx, o); err != nil {
			return err
		}
	}
	o.Disk = d // a copy made anew has the name that the ids give
	switch {
	case d.Instant:
		return s.overlay(ctx, o, status)
	case d.Template:
		return s.overlayOnTemplate(ctx, o, held, status)
	}
	return s.copy(ctx, o, held, status)
}

// clear removes what an earlier attempt left: first the receipt, durably, so
// that no receipt ever names a copy that is on its way out; then the copy. A
// complete one is given up instead: without a receipt it would be nobody's.
func (s *Service) clear(ctx context.Context, o Observed) error {
	if o.Receipt != nil {
		if o.Receipt.Discarding {
			return s.finishGivingUp(ctx, *o.Receipt)
		}
		if o.Copy.State == Ready {
			return s.giveUp(ctx, *o.Receipt)
		}
		if err := removeReceipt(s.Layout, o.Disk.Domain, o.Disk.Key()); err != nil {
			return fmt.Errorf("%s: %w", o.Disk, err)
		}
		if err := failpoint.Hit("fill.receipt-removed"); err != nil {
			return err
		}
	}
	if o.Copy.State == Absent {
		return nil
	}
	if err := s.remove(ctx, o.Disk, o.Copy); err != nil {
		return fmt.Errorf("%s: remove its unfinished copy: %w", o.Disk, err)
	}
	return failpoint.Hit("fill.removed")
}

// copy makes and fills a copy where there is none.
func (s *Service) copy(ctx context.Context, o Observed, held *lock.Lock, status *progress.Writer) error {
	o.Disk.Home = "" // a new copy goes where it is configured to go
	d := o.Disk
	// What was looked at is what is read: the files stay open from here on.
	source, err := s.open(ctx, d)
	if err != nil {
		return unreadable(d, err)
	}
	defer source.Close()
	if o.Copy, err = s.create(ctx, d, source, held, status); err != nil {
		s.clean(d)
		return fmt.Errorf("%s: %w", d, err)
	}
	if err := failpoint.Hit("fill.created"); err != nil {
		s.clean(d)
		return err
	}
	return s.fillUp(ctx, o, source, held, status)
}

// fillUp brings a copy that is updating to ready, from where it stands. One
// that fails is removed, unless it can be gone on with. One for which there
// was no room would go on to take it; but when there is none for the receipt,
// the copy is not at fault.
func (s *Service) fillUp(ctx context.Context, o Observed, source *imagecheck.Opened, held *lock.Lock, status *progress.Writer) (err error) {
	noRoom := false
	defer func() {
		if err != nil && (noRoom || !s.worthKeeping(o, source, err)) {
			s.clean(o.Disk)
		}
	}()
	if o.Digest, err = s.transfer(ctx, o, source, held, status); err != nil {
		if noRoom = errors.Is(err, failure.NoSpace); noRoom {
			err = failure.Hint(err, "%s", s.backend(o.Disk).moreRoom())
		}
		return fmt.Errorf("%s: %w", o.Disk, differsFrom(o, err))
	}
	return s.complete(ctx, o, source.Info)
}

func (s *Service) open(ctx context.Context, d Disk) (*imagecheck.Opened, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return s.checker(d).Open(ctx, d.Source)
}

func unreadable(d Disk, err error) error { return Unreadable(d, "there is no local copy yet", err) }

// Unreadable is the error of a disk whose source is needed, since copied, and
// cannot be read. It always has a way out.
func Unreadable(d Disk, copied string, err error) error {
	source, hint := "its source", failure.HintOf(err)
	if d.From != nil {
		source += " image " + failure.OneLine(d.From.String())
	} else if len(d.Source) > 0 {
		source += " " + failure.OneLine(d.Source[0].Path)
	}
	if hint == "" {
		hint = "bring its storage back, then start again"
	}
	return failure.Hint(fmt.Errorf("%s: %s, and %s cannot be read: %w", d, copied, source, err), "%s", hint)
}

func (s *Service) ioClass() transfer.IOClass { return transfer.IOClass(s.Config.Local.IOClass) }

// transfer copies what the copy does not have. digest is what was read back, if
// that was asked for.
func (s *Service) transfer(ctx context.Context, o Observed, source *imagecheck.Opened, held *lock.Lock, status *progress.Writer) (digest string, err error) {
	if err := o.Copy.awaitNode(ctx); err != nil {
		return "", err
	}
	if err := s.own(o); err != nil {
		return "", err
	}
	if err := atomicfile.MkdirAll(s.Layout.Cursors(), 0o700); err != nil {
		return "", fmt.Errorf("cursors: %w", err)
	}
	status.Set(progress.Copying)
	engine := &transfer.Engine{Run: s.Run, Log: s.Log}
	result, err := engine.Copy(ctx, from(source, o.Copy), o.Copy.target(), transfer.Options{
		Rate: int64(s.Config.Local.Rate), Locks: []*os.File{held.File()}, User: s.reader(o.Disk),
		Progress: status.Advance, Cursor: s.cursorFor(source, o.Copy), IOClass: s.ioClass(),
		// What has its base already is done in a moment, mostly. One without a
		// cursor is made anew; see goOn.
		LateCursor: present(o.Copy) > 0, Verify: o.Disk.Verify,
	})
	if err == nil {
		s.Log.Info("copied", "disk", o.Disk.String(), "method", result.Method,
			"copied", result.Copied, "zeroed", result.Zeroed, "skipped", result.Skipped, "resumed", result.Resumed)
	}
	if result.Digest != "" {
		s.Log.Info("read back", "disk", o.Disk.String(), "digest", result.Digest)
	}
	return result.Digest, err
}

// differsFrom is the way out of a copy that is not its source where there is
// another one: a clone has most of its data from a template.
func differsFrom(o Observed, err error) error {
	if !errors.Is(err, failure.Problems) || present(o.Copy) == 0 {
		return err
	}
	return failure.Hint(err, "check the disks below it (`journalctl -k`), then copy again; should its template %s be at fault, do that with [local] cache = \"off\"", o.Copy.Origin)
}

// complete ends a copy whose data has reached the disk: the source is still
// what was read, the receipt is durable, then the mark goes.
func (s *Service) complete(ctx context.Context, o Observed, info imagecheck.Info) error {
	// Without a time limit: nobody waits here, and a copy of hours is not to be
	// thrown away because its storage hangs for a moment.
	again, err := s.checker(o.Disk).Chain(ctx, o.Disk.Source)
	if err != nil {
		return fmt.Errorf("%s: look at the source again: %w", o.Disk, err)
	}
	if again.Fingerprint != info.Fingerprint {
		err := failure.New(failure.Conflict, "%s: %s changed while it was copied", o.Disk, o.Disk.Source[0].Path)
		return failure.Hint(err, "stop what writes to it, then start again")
	}
	if err := failpoint.Hit("fill.verified"); err != nil {
		return err
	}
	if err := newReceipt(o, info).write(s.Layout, o.Disk.Key()); err != nil {
		return fmt.Errorf("%s: %w", o.Disk, err)
	}
	if err := failpoint.Hit("fill.receipt"); err != nil {
		return err
	}
	if err := s.backend(o.Disk).finish(ctx, o.Disk, o.Copy, o.Machine); err != nil {
		return fmt.Errorf("%s: %w", o.Disk, err)
	}
	if err := failpoint.Hit("fill.finished"); err != nil {
		return err
	}
	if err := s.forget(o.Copy); err != nil {
		s.Log.Warn("remove the cursor of a complete copy", "err", err) // gc does it later
	}
	return nil
}

// clean takes away what a failed copy made, so that it does not hold space: we
// have the lock, and there was nothing of that name before. The caller's
// context may be what failed. What cannot be removed stays marked UPDATING, and
// the next start removes it.
func (s *Service) clean(d Disk) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := s.find(ctx, []Disk{d})
	if err == nil && found[0].State == Updating {
		var r *Receipt
		if r, err = ReadReceipt(s.Layout, d.Domain, d.Key()); err == nil && (r == nil || !r.Used) {
			err = s.clear(ctx, Observed{Disk: d, Copy: found[0], Receipt: r})
		}
	}
	if err != nil {
		s.Log.Warn("clean up after a failed copy", "disk", d.String(), "err", err)
	}
}
