// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
	"diskhook/storage/transfer"
)

// Waiting says how long a caller waits for copies and who hears of it.
type Waiting struct {
	Deadline time.Duration // 0: as long as it takes
	// Notify, if set, is told each change of a copy's status.
	Notify func(Disk, progress.Status)

	until time.Time
}

// Job is what a copy process is started with.
type Job struct {
	ID   string `json:"id"`
	Disk Disk   `json:"disk"`
}

const (
	// pollEvery is how often a waiter reads status files; at first, when a small
	// copy may be done already, it looks more often.
	pollEvery, pollFirst = 100 * time.Millisecond, 10 * time.Millisecond
	// startTimeout is how long a copy process may take to say anything.
	startTimeout = 15 * time.Second
)

// fillAndWait starts a copy process for each disk that needs one and waits
// for all. The caller holds no lock: the process takes it.
func (s *Service) fillAndWait(ctx context.Context, disks []pending, w *Waiting) error {
	if w.Deadline > 0 && w.until.IsZero() {
		w.until = time.Now().Add(w.Deadline)
	}
	if err := s.roomInTime(ctx, disks, w); err != nil {
		return err
	}
	jobs := make([]string, len(disks))
	for i, p := range disks {
		if p.action == Wait {
			s.yield(p.Disk)
			continue
		}
		id, err := s.start(ctx, p.Disk)
		if err != nil {
			return fmt.Errorf("%s: start its copy: %w", p.Disk, err)
		}
		jobs[i] = id
	}
	for i, p := range disks {
		if err := s.wait(ctx, p.Disk, jobs[i], w); err != nil {
			return err
		}
	}
	return nil
}

// roomInTime is roomFor until the deadline: it reads sources, and the caller
// must not wait longer for storage that hangs.
func (s *Service) roomInTime(ctx context.Context, disks []pending, w *Waiting) error {
	if !w.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, w.until)
		defer cancel()
	}
	return s.roomFor(ctx, disks)
}

// start runs `diskhook local fill JOBFILE` in a process of its own.
func (s *Service) start(ctx context.Context, d Disk) (string, error) {
	job := Job{ID: uuid.NewString(), Disk: d}
	dir := filepath.Join(s.Layout.Status(), d.Domain)
	if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	data, err := json.Marshal(job)
	if err != nil {
		return "", err
	}
	// Named by its id: two starts at once must not read each other's.
	path := s.jobPath(d, job.ID)
	if err := atomicfile.WriteVolatile(path, data, 0o600); err != nil {
		return "", err
	}
	return job.ID, command.Detach(ctx, s.Run, s.process(d, job.ID))
}

// process is the copy process of a job.
func (s *Service) process(d Disk, job string) command.Detached {
	var env []string
	if s.Layout.Root != "" {
		env = []string{"DISKHOOK_ROOT=" + s.Layout.Root}
	}
	return command.Detached{
		Unit:        "diskhook-copy-" + job,
		Description: failure.OneLine("diskhook: local copy of " + d.String()),
		Argv:        []string{s.Program, "local", "fill", s.jobPath(d, job)},
		Env:         env,
		Properties:  []string{"Nice=10", "IOSchedulingClass=" + string(cmp.Or(s.ioClass(), transfer.IOBestEffort)), "IOSchedulingPriority=7"},
		Log:         s.logPath(d.Domain, d.Key()),
	}
}

func (s *Service) jobPath(d Disk, id string) string {
	return filepath.Join(s.Layout.Status(), d.Domain, d.Key()+"."+id+".job")
}

// wait follows the copy until it ends or the deadline passes. With a job it
// waits for that process; without, for whoever holds the lock.
func (s *Service) wait(ctx context.Context, d Disk, job string, w *Waiting) error {
	began := time.Now()
	var last progress.Status
	for ; ; time.Sleep(min(pollEvery, max(pollFirst, time.Since(began)/8))) {
		if err := ctx.Err(); err != nil {
			err = fmt.Errorf("%s: no longer waiting for its copy, which goes on: %w", d, err)
			return failure.Hint(err, "watch it with `diskhook local status %s`, or stop it with `diskhook local cancel %s`", d.NameArg(), d.args())
		}
		// The process takes the lock before it removes its job, and says how it
		// ended before it gives the lock back. So it is looked at backwards.
		taken := !s.waitsForLock(d, job)
		held, err := lock.Held(s.Layout.Locks(), lockName(d.Domain, d.Key()))
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		st, mine := s.status(d, job)
		if mine && st != last && w.Notify != nil {
			w.Notify(d, st)
			last = st
		}
		switch {
		case mine && st.State == progress.Failed && job != "", st.Cancelled && st.Updated.After(began):
			return failed(d, st) // a copy is cancelled for all who wait for it
		case held && (job == "" || !taken) && st.Cancelled && min(time.Since(st.Updated), time.Since(began)) >= patience:
			// Not at once: who has just taken the lock has not said so yet.
			return stuckError(d, st)
		case held:
			if job == "" {
				s.yield(d) // again: who has just begun takes the first word for an old one
			}
		case job == "":
			// Not at once: a lock of a moment is no reason to look again and again.
			if time.Since(began) >= pollEvery {
				return nil
			}
		case !taken:
			if time.Since(began) > startTimeout {
				return s.silent(d, job, "did not start")
			}
		case mine && !st.State.Final() && !s.usable(ctx, d):
			return s.silent(d, job, "died")
		default:
			return nil // it is done, or somebody after it has been there: look again
		}
		if !w.until.IsZero() && time.Now().After(w.until) {
			return s.notYet(d, st)
		}
	}
}

// usable says that the copy is ready, of which its process could not tell
// where there was no room for a status file.
func (s *Service) usable(ctx context.Context, d Disk) bool {
	observed, err := s.Observe(ctx, []Disk{d})
	return err == nil && Decide(observed[0]).Action == Use
}

// status reads the disk's status file; mine says that it is about the job, or
// about anybody's when job is "".
func (s *Service) status(d Disk, job string) (st progress.Status, mine bool) {
	st, err := progress.Read(s.statusPath(d.Domain, d.Key()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("status", "err", err)
	}
	return st, err == nil && (job == "" || st.Job == job)
}

func (s *Service) silent(d Disk, job, what string) error {
	err := failure.New(failure.Temporary, "%s: its copy process %s", d, what)
	return failure.Hint(err, "see `%s`, then start again", s.process(d, job).LogCommand())
}

// waitsForLock says that the copy process has not taken the lock yet.
func (s *Service) waitsForLock(d Disk, job string) bool {
	if job == "" {
		return false
	}
	_, err := os.Stat(s.jobPath(d, job))
	return err == nil
}

// failed turns what the copy process said back into an error of its kind.
func failed(d Disk, st progress.Status) error {
	err := errors.New(strings.TrimPrefix(st.Error, d.String()+": "))
	err = fmt.Errorf("%s: %w", d, err)
	for _, k := range failure.Kinds() {
		if k.Code == st.Code {
			err = failure.Wrap(k, err)
		}
	}
	if st.Hint == "" {
		return err
	}
	return failure.Hint(err, "%s", st.Hint)
}

// notYet is the error of who waited until the deadline.
func (s *Service) notYet(d Disk, st progress.Status) error {
	if s.Exporting(d.Domain, d.Key()) {
		return exportGoesOn(d, st)
	}
	return stillCopying(d, st)
}

// leftOf is how long the work takes still, in words.
func leftOf(st progress.Status) string {
	if st.ETA < 0 {
		return "a while"
	}
	return "about " + (time.Duration(st.ETA) * time.Second).String()
}

func stillCopying(d Disk, st progress.Status) error {
	what := "its local copy"
	if st.Note != "" {
		what = st.Note
	}
	err := failure.New(failure.Temporary, "%s: %s is at %d %% and takes %s more; the copy goes on", d, what, st.Percent(), leftOf(st))
	return failure.Hint(err, "start again then, or watch `diskhook local status %s`", d.NameArg())
}
