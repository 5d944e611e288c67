// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"context"
	"time"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// askFirst and askEvery are how soon QEMU is asked how far it is, and how often
// after a while.
const (
	askFirst = 25 * time.Millisecond
	askEvery = 500 * time.Millisecond
)

// pullJob starts the job, or follows the one that somebody started before.
func (s *Service) pullJob(ctx context.Context, t *localdisk.Settling, rate int64, notify progress.Func) error {
	d := t.Disk
	job, err := s.Libvirt.BlockJob(ctx, d.Domain, d.Target)
	if err == nil && job.Type == "" {
		err = s.Libvirt.BlockPull(ctx, d.Domain, d.Target, rate)
		job.Type = PullJob
	}
	if err != nil {
		return s.stopped(ctx, t, err)
	}
	if job.Type != PullJob {
		return otherJob(d, job)
	}
	if _, err := s.follow(ctx, t, PullJob, notify); err != nil {
		return err
	}
	if whole, err := t.Whole(ctx); err != nil || whole {
		return err
	}
	err = failure.New(failure.Temporary, "%s: QEMU gave up reading its source %s", d, failure.OneLine(t.Receipt.Source[0].Path))
	err = failure.Hint(err, "see `virsh domblkerror %s` and the log of the domain in /var/log/libvirt/qemu, then run `diskhook local settle %s %s` again", d.Domain, d.Domain, d.Target)
	return s.stopped(ctx, t, err)
}

// copyJob starts the job, unless an earlier call's is there.
func (s *Service) copyJob(ctx context.Context, p *localdisk.Pivoting, rate int64) error {
	d := p.Disk
	job, err := s.Libvirt.BlockJob(ctx, d.Domain, d.Target)
	if err != nil {
		return s.stopped(ctx, p.Settling, err)
	}
	raw, err := p.RawPath(ctx)
	switch {
	case err != nil:
		return err
	case job.Type == CopyJob && raw != "":
		return nil
	case job.Type != "":
		return otherJob(d, job)
	}
	named, err := s.namesRaw(ctx, p)
	if err != nil {
		return err
	}
	if named {
		err := failure.New(failure.Conflict, "%s: the domain runs on the overlay, but its definition names the raw copy %s, in which it may have written, too", d, raw)
		return failure.Hint(err, "shut it off and run this again, which makes the raw copy the disk; or, to keep the overlay, name %s in the definition again with `virsh edit %s`", localdisk.StablePath(s.Host.Layout, d.Domain, d.Target), d.Domain)
	}
	made, err := p.Make(ctx)
	if err != nil {
		return err
	}
	if err := s.Libvirt.BlockCopy(ctx, d.Domain, d.Target, made.Path, d.Backend != "dir", rate); err != nil {
		return s.stopped(ctx, p.Settling, err)
	}
	return failpoint.Hit("pivot.mirroring")
}

// follow waits until a block job is over, or has all that the disk has. It ends
// the job when ctx ends.
func (s *Service) follow(ctx context.Context, t *localdisk.Settling, kind string, notify progress.Func) (BlockJob, error) {
	d := t.Disk
	for wait := askFirst; ; wait = min(2*wait, askEvery) {
		select {
		case <-ctx.Done():
			if err := s.Libvirt.EndBlockJob(context.WithoutCancel(ctx), d.Domain, d.Target); err != nil {
				s.Host.Log.Warn("end the block job", "disk", d.String(), "err", err)
			}
			return BlockJob{}, context.Cause(ctx)
		case <-time.After(wait):
		}
		job, err := s.Libvirt.BlockJob(ctx, d.Domain, d.Target)
		if err != nil {
			return BlockJob{}, s.stopped(ctx, t, err)
		}
		if job.Type == kind && job.Total > 0 {
			t.Advance(int64(job.Done), int64(job.Total))
			if notify != nil {
				notify(int64(job.Done), int64(job.Total))
			}
		}
		if job.Type != kind || job.Ready {
			return job, nil
		}
	}
}

// otherJob refuses a disk with which QEMU does something else.
func otherJob(d localdisk.Disk, job BlockJob) error {
	err := failure.New(failure.Conflict, "%s: a block job (%s) is under way", d, job.Type)
	return failure.Hint(err, "let it end (`virsh blockjob %s %s`), then run this again", d.Domain, d.Target)
}
