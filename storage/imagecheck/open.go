// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// image is an open layer.
type image struct {
	Layer // resolved
	file  *os.File
	stat  unix.Stat_t
	block bool
	size  int64 // bytes of the file or device
}

// open opens a layer whose path is resolved already. The first open is a mere
// handle (O_PATH): it runs no driver, waits for no FIFO and follows no link.
// Only when that handle is a file or block device, and is what the path was
// resolved to even if a directory on the way was swapped for a link, it is
// opened for reading, through the handle.
func open(l Layer) (_ *image, err error) {
	handle, err := unix.Open(l.Path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, classify(l.Path, err)
	}
	defer unix.Close(handle)
	img := &image{Layer: l}
	if err := unix.Fstat(handle, &img.stat); err != nil {
		return nil, classify(l.Path, err)
	}
	switch img.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		img.block = true
	case unix.S_IFLNK:
		return nil, swapped(l.Path)
	default:
		return nil, failure.Hint(trap(l.Path, "neither a regular file nor a block device"), "declare the image itself")
	}
	proc := "/proc/self/fd/" + strconv.Itoa(handle)
	if at, err := os.Readlink(proc); err != nil || at != l.Path {
		return nil, errors.Join(swapped(l.Path), err)
	}
	fd, err := unix.Open(proc, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, classify(l.Path, err)
	}
	// Another host may have written to shared storage since it was cached here.
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	img.file = os.NewFile(uintptr(fd), l.Path)
	img.size = img.stat.Size
	if img.block {
		if img.size, err = img.file.Seek(0, io.SeekEnd); err != nil {
			_ = img.file.Close()
			return nil, classify(l.Path, err)
		}
	}
	return img, nil
}

// same says whether path, followed, is this very file or device.
func (img *image) same(path string) bool {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return false
	}
	return img.sameStat(&st)
}

func (img *image) sameStat(st *unix.Stat_t) bool {
	if img.block {
		return st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == img.stat.Rdev
	}
	return st.Dev == img.stat.Dev && st.Ino == img.stat.Ino
}

func swapped(path string) error {
	err := trap(path, "it was replaced by a symbolic link while it was looked at")
	return failure.Hint(err, "find out who writes to %s", filepath.Dir(path))
}

// classify gives a failed system call its kind; the error names the path.
func classify(path string, err error) error {
	err = &os.PathError{Op: "open", Path: path, Err: err}
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO):
		return failure.Wrap(failure.NotFound, err)
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.EIO), errors.Is(err, unix.ETIMEDOUT):
		return failure.Wrap(failure.Temporary, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return failure.Hint(failure.Wrap(failure.Precondition, err), "let this user read it: `%s`", shell("namei", "-l", path))
	}
	return err
}

// abandon runs work as user where it can be left behind. When ctx ends first,
// the error names what work was at.
func abandon[T any](ctx context.Context, user *command.Credential, work func(at func(path string)) (T, error)) (T, error) {
	var where atomic.Value
	where.Store("")
	value, err := command.Abandon(ctx, func() (T, error) {
		if err := assume(user); err != nil {
			var none T
			return none, err
		}
		return work(func(path string) { where.Store(path) })
	})
	if errors.Is(err, command.ErrNoAnswer) {
		err = fmt.Errorf("%s: %w", where.Load(), err)
		err = failure.Hint(err, "check the storage with `%s`, then try again", shell("stat", where.Load().(string)))
	}
	return value, err
}
