// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lock"
	"diskhook/storage/progress"
)

// errCancelled is why a copy ended that `local cancel` stopped.
var errCancelled = failure.Hint(failure.New(failure.Temporary, "its copy was cancelled"), "start it again whenever you like")

func (s *Service) cancelPath(domain, key string) string {
	return filepath.Join(s.Layout.Status(), domain, key+".cancel")
}

// cancelForStart is in the file that asks for an end because the domain starts;
// `local cancel` leaves it empty.
const cancelForStart = "start"

// cancellable ends the context when somebody asks for it by a file, which
// reaches the process whoever started it and can hit no other. cause is the
// error for what is in the file.
func (s *Service) cancellable(ctx context.Context, d Disk, cause func(why string) error) (context.Context, func()) {
	path := s.cancelPath(d.Domain, d.Key())
	_ = os.Remove(path)
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if why, err := os.ReadFile(path); err == nil {
				cancel(cause(string(why)))
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); _ = os.Remove(path) }
}

// cancelledSince says that the copy was cancelled while the process of a job
// waited for the one that was stopped. It was meant, too.
func (s *Service) cancelledSince(jobFile string, d Disk) bool {
	st, err := progress.Read(s.statusPath(d.Domain, d.Key()))
	if err != nil || !st.Cancelled {
		return false
	}
	job, err := os.Stat(jobFile)
	return err == nil && st.Updated.After(job.ModTime())
}

// Working says whether there is anybody whom Cancel would stop.
func (s *Service) Working(domain, key string) (bool, error) {
	if err := validKey(domain, key); err != nil {
		return false, err
	}
	return lock.Held(s.Layout.Locks(), s.workLock(domain, key))
}

// workLock is held by who settles a disk, else by who copies it.
func (s *Service) workLock(domain, key string) string {
	if s.settling(domain, key) {
		return settleLock(domain, key)
	}
	return lockName(domain, key)
}

// Cancel asks the copy process of a disk, or who settles or exports it, to stop
// and waits until it has. It may complete its work before it hears of it. That none runs
// is a failure.NotFound; that it has heard, but its storage hangs, is a
// failure.Temporary.
func (s *Service) Cancel(ctx context.Context, domain, key string) error {
	if err := validKey(domain, key); err != nil {
		return err
	}
	if err := s.awaitWork(ctx, domain, key); err != nil {
		return err
	}
	name, began := s.workLock(domain, key), time.Now()
	// Again and again: who has just begun takes a file that is there already
	// for one that was left from before, and away.
	for ; ; time.Sleep(pollEvery) {
		held, err := lock.Held(s.Layout.Locks(), name)
		if err != nil || !held {
			_ = os.Remove(s.cancelPath(domain, key))
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		d := s.known(domain, key)
		if time.Since(began) >= exportPatience && s.Exporting(domain, key) {
			return stuckExport(d)
		}
		if st, mine := s.status(d, ""); mine && st.Cancelled && time.Since(st.Updated) >= patience && time.Since(began) >= patience {
			return stuckError(d, st)
		}
		if err := os.WriteFile(s.cancelPath(domain, key), nil, 0o600); err != nil {
			return err
		}
	}
}

// awaitWork returns when somebody works on the disk, for which a process that
// was just started is given its time. That nobody does is a failure.NotFound.
func (s *Service) awaitWork(ctx context.Context, domain, key string) error {
	for ; ; time.Sleep(pollEvery) {
		starting, err := s.Starting(domain, key)
		if err != nil {
			return err
		}
		// In this order: the process takes the lock before its job goes.
		held, err := lock.Held(s.Layout.Locks(), s.workLock(domain, key))
		switch {
		case err != nil:
			return err
		case held:
			return nil
		case !starting:
			return failure.New(failure.NotFound, "%s: nothing copies", s.known(domain, key))
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}
