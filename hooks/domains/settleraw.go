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

// SettleRaw makes a raw copy of the overlay of a disk, at rate bytes per second
// (0: no limit), and makes that the disk: see localdisk.Pivoting. While its
// domain runs QEMU mirrors it, else this reads it. One that was interrupted
// goes on, also where its domain was started or has stopped since.
//
// localdisk.ErrSettled: the disk is raw. localdisk.ErrStarts: the domain started
// while this read its disk.
func (s *Service) SettleRaw(ctx context.Context, domain, key string, rate int64, notify progress.Func) (err error) {
	p, err := s.Local.Pivoting(domain, key)
	if err != nil {
		return err
	}
	p.Fill = rawFill
	defer func() { p.Release(err) }()
	ctx, stop := p.Cancellable(ctx)
	defer stop()
	for range settleTurns {
		if err = s.settleRaw(ctx, p, rate, notify); !errors.Is(err, errStopped) && !errors.Is(err, localdisk.ErrOpen) {
			break
		}
	}
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err := fmt.Errorf("%s: it is not raw yet: %w", p.Disk, cause)
		return failure.Hint(err, "run `diskhook local settle --raw %s %s` again", p.Disk.Domain, p.Disk.Target)
	}
	return err
}

func (s *Service) settleRaw(ctx context.Context, p *localdisk.Pivoting, rate int64, notify progress.Func) error {
	runs, err := s.runs(ctx, p.Disk.Domain)
	switch {
	case err != nil:
		return fmt.Errorf("%s: whether its domain runs is not known: %w", p.Disk, err)
	case p.Marked():
	case runs:
		if err := s.toRaw(ctx, p, rate, notify); err != nil {
			return err
		}
	default:
		named, err := s.namesRaw(ctx, p)
		if err != nil {
			return err
		}
		if named { // it went over, and may have written there since
			err = p.Mark(ctx)
		} else {
			err = s.convert(ctx, p, rate, notify)
		}
		if err != nil {
			return err
		}
	}
	// Nobody may stop it in the middle of what is left, which takes no time.
	return s.afterMark(context.WithoutCancel(ctx), p)
}

// convert goes from the overlay of a domain that does not run to the mark in the
// receipt. Where that is refused, what an earlier call left goes.
func (s *Service) convert(ctx context.Context, p *localdisk.Pivoting, rate int64, notify progress.Func) error {
	if err := s.mayConvert(ctx, p); err != nil {
		return errors.Join(err, p.Clean(context.WithoutCancel(ctx)))
	}
	return p.Convert(ctx, rate, notify)
}

// mayConvert refuses a domain whose definition does not open the overlay
// itself, or could not follow.
func (s *Service) mayConvert(ctx context.Context, p *localdisk.Pivoting) error {
	if s.Libvirt.URI == "" {
		return noLibvirt(p)
	}
	if err := s.mayPivot(ctx, p); err != nil {
		return err
	}
	if err := s.unsaved(ctx, p.Settling); err != nil {
		return err
	}
	d, err := s.Look(ctx, p.Disk.Domain)
	if err != nil {
		return err
	}
	if err := s.onItsCopy(ctx, d, p); err != nil {
		return err
	}
	if d.entry(p.Disk.Target) == nil {
		err := failure.New(failure.Precondition, "%s: it is not bound any more", p.Disk)
		return failure.Hint(err, "bind it with `diskhook domain apply --local %s=%s,fill=instant %s`", p.Disk.Target, p.Disk.Backend, d.NameArg())
	}
	return nil
}

// toRaw goes from an overlay to the mark in the receipt. When it fails after
// the pivot, or when nobody can say whether there was one, the domain stays
// suspended: nothing may be written to a copy that is not the disk.
func (s *Service) toRaw(ctx context.Context, p *localdisk.Pivoting, rate int64, notify progress.Func) error {
	pivoted, err := s.onRaw(ctx, p)
	if err != nil {
		return err
	}
	if !pivoted {
		if err := s.mayPivot(ctx, p); err != nil {
			return err
		}
		if err := s.mirror(ctx, p, rate, notify); err != nil {
			return err
		}
	}
	ctx = context.WithoutCancel(ctx)
	if err := s.suspend(ctx, p); err != nil {
		return err
	}
	if !pivoted {
		if err := s.pivot(ctx, p); err != nil {
			return err
		}
		if err := failpoint.Hit("pivot.pivoted"); err != nil {
			return err
		}
	}
	if err := p.Mark(ctx); err != nil {
		err = fmt.Errorf("%w; the domain is suspended, since it runs on its raw copy, which cannot be made its disk", err)
		return failure.Hint(err, "run `diskhook local settle --raw %s %s` again; it resumes the domain", p.Disk.Domain, p.Disk.Target)
	}
	return nil
}

// pivot returns nil only for a domain that runs on the raw copy now, and
// resumes only one that is sure to run on the overlay still.
func (s *Service) pivot(ctx context.Context, p *localdisk.Pivoting) error {
	err := s.Libvirt.Pivot(ctx, p.Disk.Domain, p.Disk.Target)
	pivoted, unknown := s.onRaw(ctx, p)
	switch {
	case errors.Is(unknown, errStopped):
		return unknown
	case unknown != nil:
		err = fmt.Errorf("%w; the domain stays suspended, since whether it went over to its raw copy is not known", errors.Join(err, unknown))
		return failure.Hint(err, "run `diskhook local settle --raw %s %s` again; it resumes the domain", p.Disk.Domain, p.Disk.Target)
	case pivoted:
		return nil
	case err == nil:
		err = failure.New(failure.Temporary, "%s: QEMU did not go over to the raw copy", p.Disk)
	}
	return s.stopped(ctx, p.Settling, errors.Join(err, s.resume(ctx, p.Settling)))
}

// mayPivot refuses a domain whose definition could not follow.
func (s *Service) mayPivot(ctx context.Context, p *localdisk.Pivoting) error {
	facts, err := s.Libvirt.Facts(ctx, p.Disk.Domain)
	if failure.KindOf(err) == failure.NotFound {
		err := failure.New(failure.Precondition, "%s: its domain is not defined, so nothing could say what the disk becomes", p.Disk)
		return failure.Hint(err, "define it again as it was with `virsh define`, then run this again")
	}
	if err != nil {
		return err
	}
	for _, why := range []struct {
		is         bool
		text, hint string
	}{
		{!facts.Persistent, "its domain is transient: it has no definition that could say what the disk becomes", "define it with `virsh define` first"},
		{facts.Snapshots+facts.Checkpoints > 0, "its domain has snapshots or checkpoints, which live in its overlay", "delete them with `virsh snapshot-delete` and `virsh checkpoint-delete`, then run this again"},
		{p.Receipt.OnStop == localdisk.Discard, "it is given up when the domain stops (on-stop=discard)", "settle it with `diskhook local settle " + p.Disk.Domain + "`"},
	} {
		if why.is {
			return failure.Hint(failure.New(failure.Precondition, "%s: %s", p.Disk, why.text), "%s", why.hint)
		}
	}
	return nil
}

// onRaw says whether the domain runs on the raw copy. It must run on that or on
// the overlay.
func (s *Service) onRaw(ctx context.Context, p *localdisk.Pivoting) (bool, error) {
	raw, err := p.RawPath(ctx)
	if err != nil {
		return false, err
	}
	xml, err := s.Libvirt.Live(ctx, p.Disk.Domain)
	if err != nil {
		return false, s.stopped(ctx, p.Settling, err)
	}
	doc, err := xmlrewrite.Parse(xml)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.Disk, err)
	}
	disk, there := doc.Disk(p.Disk.Target)
	if there && raw != "" && disk.Source.Path() == raw {
		return true, nil
	}
	return false, s.alone(ctx, p.Settling)
}

// mirror makes the raw copy until both are the same and stay so.
func (s *Service) mirror(ctx context.Context, p *localdisk.Pivoting, rate int64, notify progress.Func) error {
	if err := s.copyJob(ctx, p, rate); err != nil {
		return err
	}
	job, err := s.follow(ctx, p.Settling, CopyJob, notify)
	switch {
	case err != nil:
		return err
	case job.Type != CopyJob:
		err := failure.New(failure.Temporary, "%s: QEMU gave up making its raw copy", p.Disk)
		err = failure.Hint(err, "see `virsh domblkerror %s` and the log of the domain in /var/log/libvirt/qemu, then run this again", p.Disk.Domain)
		return s.stopped(ctx, p.Settling, err)
	}
	if err := p.Reserve(ctx); err != nil {
		return err
	}
	return failpoint.Hit("pivot.ready")
}

// suspend stops the guest, and notes before that it is to be resumed. One that
// somebody else has paused stays so.
func (s *Service) suspend(ctx context.Context, p *localdisk.Pivoting) error {
	facts, err := s.Libvirt.Facts(ctx, p.Disk.Domain)
	if err != nil {
		return err
	}
	if !facts.Active {
		return fmt.Errorf("%s: %w", p.Disk, errStopped)
	}
	if facts.State == "paused" {
		return nil
	}
	if err := p.Suspending(ctx, facts.Run); err != nil {
		return err
	}
	if err := s.Libvirt.Suspend(ctx, p.Disk.Domain); err != nil {
		return s.stopped(ctx, p.Settling, err)
	}
	return failpoint.Hit("pivot.suspended")
}

// afterMark does what is left once the raw copy is the disk: the definition
// says so, the path leads there, the guest goes on, the overlay goes.
func (s *Service) afterMark(ctx context.Context, p *localdisk.Pivoting) error {
	if err := s.agree(ctx, p); err != nil {
		return err
	}
	runs, err := s.runs(ctx, p.Disk.Domain)
	if err != nil {
		return fmt.Errorf("%s: it is raw, but whether its domain runs is not known: %w", p.Disk, err)
	}
	if runs {
		if err := p.Swap(ctx); err != nil {
			return err
		}
		if err := failpoint.Hit("pivot.swapped"); err != nil {
			return err
		}
		if err := s.resume(ctx, p.Settling); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("pivot.resumed"); err != nil {
		return err
	}
	return p.Clean(ctx)
}
