// SPDX-License-Identifier: Apache-2.0

// Package lock is the one lock of diskhook: flock(2) on a file below
// /run/diskhook/lock, usable by root and by vdsm.
//
// flock belongs to the open file, not to the process: a child that inherits
// the descriptor (command.Cmd.Files) keeps the lock for as long as it lives.
// That is the point. A writer that outlives its parent still holds the lock
// of the disk it writes to, and nobody takes the disk for abandoned. So there
// is no lock file to go stale, and no pid to compare.
package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// ErrHeld says that somebody else holds the lock. It is a failure.Temporary.
var ErrHeld = failure.Wrap(failure.Temporary, errors.New("lock is held"))

const pollInterval = 50 * time.Millisecond

// Lock is a held lock. File may be handed to children; Release gives up this
// process's share of it.
type Lock struct{ file *os.File }

// File is the descriptor that carries the lock.
func (l *Lock) File() *os.File { return l.file }

// Release closes the descriptor. The lock is free once every child that
// inherited it has gone, too.
func (l *Lock) Release() {
	if l != nil && l.file != nil {
		_ = l.file.Close()
	}
}

// Try takes the exclusive lock called name in dir, or fails at once with
// ErrHeld. A name is one path element.
func Try(dir, name string) (*Lock, error) { return open(dir, name, unix.LOCK_EX) }

// TryShared is Try for a lock that others may share, but not hold exclusively.
func TryShared(dir, name string) (*Lock, error) { return open(dir, name, unix.LOCK_SH) }

// Acquire waits for the exclusive lock until ctx ends; then the error is
// ErrHeld joined with the context's.
func Acquire(ctx context.Context, dir, name string) (*Lock, error) {
	for {
		l, err := Try(dir, name)
		if err == nil || !errors.Is(err, ErrHeld) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(pollInterval):
		}
	}
}

// Held reports whether somebody holds the lock exclusively right now. It
// leaves nothing behind and waits for nothing.
func Held(dir, name string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	l, err := TryShared(dir, name)
	if errors.Is(err, ErrHeld) {
		return true, nil
	}
	l.Release()
	return false, err
}

func open(dir, name string, how int) (*Lock, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, failure.New(failure.Usage, "lock %q: not a file name", name)
	}
	path := filepath.Join(dir, name)
	// Never deleted: a waiter that holds the unlinked file would not exclude
	// one that makes a new file of the same name.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o660)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", name, ErrHeld)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return &Lock{f}, nil
}
