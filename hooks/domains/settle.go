// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
	"diskhook/xmlrewrite"
)

// settleTurns bounds how often one call follows a domain that is started and
// stopped meanwhile.
const settleTurns = 4

// errStopped says that a domain stopped while QEMU settled its disk.
var errStopped = failure.Wrap(failure.Temporary, errors.New("the domain stopped"))

// Settle makes the overlay of a disk whole, at rate bytes per second (0: no
// limit), and marks it as settled: by QEMU while the domain runs, else by
// itself. What was done stays, however it ends, and the next call goes on.
//
// localdisk.ErrSettled: there is nothing to do. That somebody else is at it is a
// failure.Temporary.
func (s *Service) Settle(ctx context.Context, domain, key string, rate int64, notify progress.Func) (err error) {
	t, err := s.Local.Settle(domain, key)
	if err != nil {
		return err
	}
	defer func() { t.Release(err) }()
	if err := s.unsaved(ctx, t); err != nil {
		return err
	}
	ctx, stop := t.Cancellable(ctx)
	defer stop()
	for range settleTurns {
		runs, unknown := s.runs(ctx, domain)
		if unknown != nil { // who has its disk open is looked at all the same
			s.Host.Log.Warn("libvirt was not asked", "domain", domain, "err", unknown)
		}
		if runs {
			err = s.pull(ctx, t, rate, notify)
		} else {
			err = t.Offline(ctx, rate, notify)
		}
		if cause := context.Cause(ctx); cause != nil && err != nil {
			return fmt.Errorf("%s: it is not settled yet: %w", t.Disk, cause)
		}
		if !errors.Is(err, errStopped) && !errors.Is(err, localdisk.ErrOpen) {
			return err
		}
	}
	return failure.Hint(err, "run `diskhook local settle %s %s` again once the domain runs, or once it is shut off", t.Disk.DomainName, t.Disk.Target)
}

// unsaved refuses a domain with a managed save: what libvirt keeps there may
// say what its disks lie on.
func (s *Service) unsaved(ctx context.Context, t *localdisk.Settling) error {
	if s.Libvirt.URI == "" {
		return nil
	}
	facts, err := s.Libvirt.Facts(ctx, t.Disk.Domain)
	if err != nil || !facts.ManagedSave {
		return nil // libvirt's word is one of several
	}
	err = failure.New(failure.Conflict, "%s: the domain has a managed save, whose memory needs the disk as it is", t.Disk)
	return failure.Hint(err, "start the domain with `virsh start %s`, then run this again", t.Disk.Domain)
}

// runs asks libvirt whether the domain runs. Where there is no libvirt to ask it
// does not; an error says that nobody knows.
func (s *Service) runs(ctx context.Context, domain string) (bool, error) {
	if s.Libvirt.URI == "" {
		return false, nil
	}
	facts, err := s.Libvirt.Facts(ctx, domain)
	if failure.KindOf(err) == failure.NotFound {
		return false, nil
	}
	return err == nil && facts.Active, err
}

// pull has QEMU read the source into the overlay. QEMU takes the source out of
// the image's header at the end, and writes its own tables out when it likes.
// So the mark comes only after it was made to.
func (s *Service) pull(ctx context.Context, t *localdisk.Settling, rate int64, notify progress.Func) error {
	if err := s.alone(ctx, t); err != nil {
		return err
	}
	if err := s.resume(ctx, t); err != nil { // an earlier call's
		return err
	}
	whole, err := t.Whole(ctx)
	if err != nil {
		return err
	}
	if !whole {
		if err := s.pullJob(ctx, t, rate, notify); err != nil {
			return err
		}
		if err := failpoint.Hit("settle.pulled"); err != nil {
			return err
		}
	}
	if err := s.flush(context.WithoutCancel(ctx), t); err != nil {
		return err
	}
	if err := failpoint.Hit("settle.written"); err != nil {
		return err
	}
	return t.Finish(ctx)
}

// flush has QEMU write out what it knows of the image, for which the domain is
// suspended for a moment: with a note of that, and nobody may stop it. One that
// somebody else has paused stays so.
func (s *Service) flush(ctx context.Context, t *localdisk.Settling) error {
	facts, err := s.Libvirt.Facts(ctx, t.Disk.Domain)
	if err != nil {
		return err
	}
	paused := func(state string) error {
		err := failure.New(failure.Temporary, "%s: all of it is here, but the domain is %s, and QEMU does not flush it", t.Disk, state)
		return failure.Hint(err, "once the domain runs again (`virsh resume %s`), run `diskhook local settle %s %s`", t.Disk.Domain, t.Disk.Domain, t.Disk.Target)
	}
	switch {
	case !facts.Active:
		return fmt.Errorf("%s: %w", t.Disk, errStopped)
	case facts.State == "paused":
		return paused(facts.State)
	}
	if err := t.Suspending(ctx, facts.Run); err != nil {
		return err
	}
	flushed, err := s.Libvirt.Flush(ctx, t.Disk.Domain)
	if err != nil {
		return s.stopped(ctx, t, errors.Join(err, s.resume(ctx, t)))
	}
	if err := t.Suspending(ctx, ""); err != nil {
		return err
	}
	if !flushed.Flushed {
		return paused(flushed.State)
	}
	return nil
}

// resume lets the guest go on if it was stopped for this. A later run of the
// domain was not: who has paused that one means it. While nobody can say that
// the guest goes on, or that the run has ended, the note stays.
func (s *Service) resume(ctx context.Context, t *localdisk.Settling) error {
	run := t.Receipt.Suspended
	if run == "" {
		return nil
	}
	goesOn, err := s.goesOn(ctx, t.Disk.Domain, run)
	if err == nil && !goesOn {
		if err = s.Libvirt.Resume(ctx, t.Disk.Domain); err != nil {
			var unknown error
			if goesOn, unknown = s.goesOn(ctx, t.Disk.Domain, run); goesOn {
				err = nil
			}
			err = errors.Join(err, unknown)
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: it is suspended: %w", t.Disk, err)
		return failure.Hint(err, "run this again, or resume it with `virsh resume %s`", t.Disk.Domain)
	}
	return t.Suspending(ctx, "")
}

// goesOn says that a run of a domain is not suspended, or is over.
func (s *Service) goesOn(ctx context.Context, domain, run string) (bool, error) {
	facts, err := s.Libvirt.Facts(ctx, domain)
	if failure.KindOf(err) == failure.NotFound {
		return true, nil
	}
	return err == nil && (!facts.Active || facts.Run != run || facts.State != "paused"), err
}

// alone refuses a domain that runs on something else than its overlay, such as
// a snapshot on top of it: QEMU would read the source into that.
func (s *Service) alone(ctx context.Context, t *localdisk.Settling) error {
	xml, err := s.Libvirt.Live(ctx, t.Disk.Domain)
	if err != nil {
		return s.stopped(ctx, t, err)
	}
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		return fmt.Errorf("%s: %w", t.Disk, err)
	}
	stable := localdisk.StablePath(s.Host.Layout, t.Disk.Domain, t.Disk.Target)
	disk, there := doc.Disk(t.Disk.Target)
	switch {
	case !there:
		return failure.New(failure.Conflict, "%s: the running domain does not have it", t.Disk)
	case disk.Source.Path() != stable && t.Receipt.Pivot != nil:
		err := failure.New(failure.Conflict, "%s: the domain runs on %s, and not on the overlay itself", t.Disk, failure.OneLine(disk.Source.String()))
		return failure.Hint(err, "if that is its raw copy, run `diskhook local settle --raw %s %s`, which was interrupted", t.Disk.Domain, t.Disk.Target)
	case disk.Source.Path() != stable:
		err := failure.New(failure.Conflict, "%s: the domain runs on %s, and not on the overlay itself", t.Disk, failure.OneLine(disk.Source.String()))
		return failure.Hint(err, "if that is a snapshot, merge it with `virsh blockcommit %s %s --active --pivot`, then run this again", t.Disk.Domain, t.Disk.Target)
	}
	return nil
}

// stopped tells an error that comes from the end of the domain from others. In
// doubt it does not.
func (s *Service) stopped(ctx context.Context, t *localdisk.Settling, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if runs, unknown := s.runs(ctx, t.Disk.Domain); runs || unknown != nil {
		return err
	}
	return fmt.Errorf("%s: %w", t.Disk, errStopped)
}
