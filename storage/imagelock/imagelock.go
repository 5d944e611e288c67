// SPDX-License-Identifier: Apache-2.0

// Package imagelock takes the locks by which QEMU keeps two programs from
// using one image at cross purposes, as block/file-posix.c of QEMU has them.
//
// They are shared OFD locks on single bytes (fcntl(2), "Open file description
// locks"). For each permission that somebody has on the image there is one at
// 100 plus the permission's bit, for each that somebody denies to others one
// at 200 plus the bit. Who takes an image locks its own bytes first and then
// looks whether anybody has what it denies, or denies what it has; so of two
// that come at once at least one notices.
//
// The locks belong to the open file description. They end with Release or
// when its last descriptor is closed. Taking them may hang as long as remote
// storage does.
//
// An image in use otherwise is a failure.Conflict. Storage without such locks
// is ErrNoLocks, and nothing is taken: QEMU goes on without, too.
package imagelock

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// ErrNoLocks says that the file system has no OFD locks.
var ErrNoLocks = errors.New("no image locks here")

// QEMU's permissions, BLK_PERM_* in include/block/block-common.h.
const (
	consistentRead = iota
	write
	_ // write what is there already
	resize
)

const (
	hasBase    = 100
	deniesBase = 200
)

// use is what one kind of user has and denies.
type use struct{ has, denies []int64 }

// What qemu-img takes on an image that it reads, and on a raw one that it
// writes without sharing.
var (
	reading = use{has: []int64{consistentRead}, denies: []int64{write, resize}}
	writing = use{has: []int64{consistentRead, write}, denies: []int64{write, resize}}
)

// Read takes the locks of a reader who needs that nobody writes. f must be
// open for reading.
func Read(f *os.File) error { return take(f, reading) }

// Write takes the locks of the one writer.
func Write(f *os.File) error { return take(f, writing) }

// Release gives up what Read or Write took.
func Release(f *os.File) {
	lock := unix.Flock_t{Type: unix.F_UNLCK, Start: hasBase, Len: deniesBase - hasBase + 64}
	_ = fcntl(f, unix.F_OFD_SETLK, &lock)
}

func take(f *os.File, u use) error {
	probe := unix.Flock_t{Type: unix.F_WRLCK, Start: hasBase, Len: 1}
	if err := fcntl(f, unix.F_OFD_GETLK, &probe); err != nil {
		return ErrNoLocks // qemu_has_file_lock asks the same
	}
	if err := u.lock(f); err != nil {
		Release(f)
		return err
	}
	return nil
}

func (u use) lock(f *os.File) error {
	own := append(offsets(hasBase, u.has), offsets(deniesBase, u.denies)...)
	for _, at := range own {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		if err := fcntl(f, unix.F_OFD_SETLK, &lock); err != nil {
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
	others := append(offsets(hasBase, u.denies), offsets(deniesBase, u.has)...)
	for _, at := range others {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		if err := fcntl(f, unix.F_OFD_GETLK, &lock); err != nil {
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		if lock.Type != unix.F_UNLCK {
			err := failure.New(failure.Conflict, "%s: a running QEMU or qemu-img has its image lock", f.Name())
			return failure.Hint(err, "stop the domain or program that uses it: `fuser -v %s`", f.Name())
		}
	}
	return nil
}

func offsets(base int64, permissions []int64) []int64 {
	var at []int64
	for _, p := range permissions {
		at = append(at, base+p)
	}
	return at
}

func fcntl(f *os.File, cmd int, lock *unix.Flock_t) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			failed = unix.FcntlFlock(fd, cmd, lock)
			if failed != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, failed)
}
