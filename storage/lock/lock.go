// SPDX-License-Identifier: Apache-2.0

// Package lock is the one lock of diskhook: flock(2) on a file below
// /run/diskhook/lock. Root makes the files; vdsm may lock those that are there,
// but neither make nor remove any: who could remove the file of a held lock
// would have the next one lock a new file, and two would write.
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

// Try takes the exclusive lock called name in dir, or fails with ErrHeld after
// about a tenth of a second, in which it outlasts those who only look; see Held.
// A name is one path element.
func Try(dir, name string) (*Lock, error) {
	for pause := firstPause; ; pause *= 2 {
		l, err := open(dir, name, unix.LOCK_EX)
		if pause > lastPause || !errors.Is(err, ErrHeld) {
			return l, err
		}
		time.Sleep(pause)
	}
}

// The pauses after which Try looks again at a lock that is held, each twice the
// one before. Held shares the lock for a few microseconds, but on a busy host it
// may be kept from running in the middle of them.
const firstPause, lastPause = time.Millisecond, 64 * time.Millisecond

// tryShared is Try for a lock that others may share, but not hold exclusively.
func tryShared(dir, name string) (*Lock, error) { return open(dir, name, unix.LOCK_SH) }

// TryEither takes the lock exclusively if nobody has it, and else shares it with
// those who share it; alone says which it is. If somebody holds it exclusively it
// is ErrHeld, at once.
func TryEither(dir, name string) (l *Lock, alone bool, err error) {
	if l, err = open(dir, name, unix.LOCK_EX); !errors.Is(err, ErrHeld) {
		return l, err == nil, err
	}
	l, err = tryShared(dir, name)
	return l, false, err
}

// Acquire waits for the exclusive lock until ctx ends; then the error is
// ErrHeld joined with the context's.
func Acquire(ctx context.Context, dir, name string) (*Lock, error) {
	return wait(ctx, func() (*Lock, error) { return Try(dir, name) })
}

// Share is Acquire for a lock that all who share it have at the same time, while nobody
// has it exclusively.
func Share(ctx context.Context, dir, name string) (*Lock, error) {
	return wait(ctx, func() (*Lock, error) { return tryShared(dir, name) })
}

func wait(ctx context.Context, try func() (*Lock, error)) (*Lock, error) {
	for {
		l, err := try()
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
	l, err := tryShared(dir, name)
	if errors.Is(err, ErrHeld) {
		return true, nil
	}
	l.Release()
	return false, err
}

// replacements bounds how often a lock file may be replaced while it is taken.
const replacements = 10

func open(dir, name string, how int) (*Lock, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, failure.New(failure.Usage, "lock %q: not a file name", name)
	}
	path := filepath.Join(dir, name)
	for range replacements {
		// Never deleted: a holder of the unlinked file would not exclude one
		// that makes a new file of the same name.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o660)
		if errors.Is(err, os.ErrPermission) {
			err = failure.Wrap(failure.Precondition, fmt.Errorf("lock %s: %w", name, err))
			return nil, failure.Hint(err, "run this as root, who alone makes locks")
		}
		if err != nil {
			return nil, notMade(dir, fmt.Errorf("lock %s: %w", name, err))
		}
		switch err := take(f, path, how); {
		case err == nil:
			return &Lock{f}, nil
		case !errors.Is(err, errReplaced):
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		_ = f.Close()
	}
	return nil, fmt.Errorf("lock %s: its file keeps being replaced: %w", name, ErrHeld)
}

// notMade has the way out where there is no room for one more lock.
func notMade(dir string, err error) error {
	if err = failure.Full(err); errors.Is(err, failure.NoSpace) {
		err = failure.Hint(err, "free space and inodes there (`df -i %s`), then try again", dir)
	}
	return err
}

// errReplaced says that the locked file is not the one of that name any more.
var errReplaced = errors.New("lock file was replaced")

// take locks f, which was opened as path. Somebody may have put another file
// there in between: then both would hold a lock, each that of a file of its own.
func take(f *os.File, path string, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrHeld
	}
	if err != nil {
		return err
	}
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	if there, err := os.Lstat(path); err != nil || !os.SameFile(locked, there) {
		return errReplaced
	}
	return nil
}
