// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/lvm"
)

// Service does the work on replica sets. All fields but Resumer, Watcher and
// Reader are needed. It keeps no state between calls and may be used from any
// goroutine.
type Service struct {
	Layout host.Layout
	Config host.Config
	Run    command.Runner
	Log    *slog.Logger

	// Program is the absolute path of diskhook, which is started as
	// `diskhook quorum serve SET`.
	Program string

	// Resumer resumes guests when a set is served again after it went; nil: nobody does.
	Resumer Resumer

	// Watcher hears what domains' QEMUs report that open a set themselves; nil: nobody does.
	Watcher Watcher

	// Reader reads what disks are that sets take the place of (Fits); nil is
	// ourselves. oVirt's are on shares that root may not read.
	Reader *command.Credential
}

// Lock takes a set for oneself, without waiting: a daemon that serves it, or a
// verb that works on it, holds the lock as long as it uses the replicas. When
// somebody else has it the error is a failure.Conflict.
func (s *Service) Lock(name string) (*lock.Lock, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	for _, dir := range []string{s.Layout.Run(), s.Layout.Locks()} {
		if err := atomicfile.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
	}
	l, err := lock.Try(s.Layout.Locks(), lockName(name))
	if errors.Is(err, lock.ErrHeld) {
		return nil, s.inUse(name)
	}
	return l, err
}

// hold is Lock, and what the definition says then.
func (s *Service) hold(name string) (*lock.Lock, Set, error) {
	held, err := s.Lock(name)
	if err != nil {
		return nil, Set{}, err
	}
	set, err := s.Load(name)
	if err != nil {
		held.Release()
		return nil, Set{}, err
	}
	return held, set, nil
}

// inUse is the error of who meets the lock of somebody else, whom it names unless
// that is the process which serves the set.
func (s *Service) inUse(name string) error {
	who, seen := lock.HolderOf(s.Layout.Locks(), lockName(name))
	if live, err := s.Live(name); !seen || err == nil && live.PID == who.PID || len(s.orphans(name)) > 0 {
		err := failure.New(failure.Conflict, "replica set %s: it is served to a guest, or another verb works on it", name)
		return failure.Hint(err, "see `diskhook quorum status %s`; try again when it is free", name)
	}
	argv := slices.Clone(who.Argv)
	if len(argv) > 0 {
		argv[0] = filepath.Base(argv[0])
	}
	err := failure.New(failure.Conflict, "replica set %s: `%s` works on it (process %d)", name, failure.OneLine(clip(command.Quote(argv))), who.PID)
	return failure.Hint(err, "wait for its end, or end it with `kill %d`, then try again", who.PID)
}

// Locked says whether somebody holds the set's lock.
func (s *Service) Locked(name string) (bool, error) {
	return lock.Held(s.Layout.Locks(), lockName(name))
}

func lockName(set string) string { return "quorum-" + set }

func (s *Service) lvm() *lvm.LVM {
	return &lvm.LVM{Run: s.Run, Devices: s.Config.LVM.Devices, Timeout: time.Duration(s.Config.LVM.Timeout)}
}

func (s *Service) hangTimeout(set Set) time.Duration {
	if set.HangTimeout > 0 {
		return time.Duration(set.HangTimeout)
	}
	if s.Config.Quorum.HangTimeout > 0 {
		return time.Duration(s.Config.Quorum.HangTimeout)
	}
	return 10 * time.Second
}

func (s *Service) checker() imagecheck.Checker {
	return imagecheck.Checker{Allowed: s.Config.Paths.Allowed}
}

// daemon is the qemu-storage-daemon of [quorum] daemon, or the system's.
func (s *Service) daemon() string {
	if s.Config.Quorum.Daemon != "" {
		return s.Config.Quorum.Daemon
	}
	return "qemu-storage-daemon"
}

// refuseWhile is for verbs that go on with none but those that are named, if they
// did not end.
func refuseWhile(set Set, verbs ...string) error {
	i := set.Intent
	if i == nil || slices.Contains(verbs, i.Verb) {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: its %s did not end", &set, i.Verb)
	if i.Verb == verbReplace {
		return failure.Hint(err, "run `%s` again first, or with another image; or give it up with `diskhook quorum resync %s`", again(set), set.Name)
	}
	return failure.Hint(err, "run `%s` again first", again(set))
}

// again is the command that ends what is under way.
func again(set Set) string {
	i := set.Intent
	switch i.Verb {
	case verbResync:
		if i.Replica != "" {
			return "diskhook quorum resync --from " + i.Replica + " " + set.Name
		}
		return "diskhook quorum resync " + set.Name
	case verbReplace:
		return "diskhook quorum replace " + set.Name + " " + i.Replica + " " + i.With.Top().String()
	case verbRemove:
		return "diskhook quorum remove " + set.Name
	}
	return "diskhook quorum build … " + set.Name
}

// stopped is the context's error, if it has ended.
func stopped(ctx context.Context) error { return context.Cause(ctx) }
