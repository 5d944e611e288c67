// SPDX-License-Identifier: Apache-2.0

// Package blockdev is what diskhook asks of a block device itself, by ioctl
// and sysfs rather than through a program: how large it is, who uses it, to
// be zeroed and to be flushed. Regular files answer the same questions, since
// the dir backend keeps copies in them.
//
// Nothing here opens what it is not told to, and nothing grows or shrinks
// what it is given. Errors name the path; a device that somebody else holds
// is a failure.Conflict, a node that is not what it should be a
// failure.Precondition.
package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// Kind is what a path leads to, symlinks followed.
type Kind string

// The kinds of nodes.
const (
	Block   Kind = "block device"
	Regular Kind = "regular file"
	Other   Kind = "neither a block device nor a regular file"
)

// KindOf looks at path. One that leads nowhere is a failure.NotFound.
func KindOf(path string) (Kind, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", failure.Wrap(failure.NotFound, err)
	}
	if err != nil {
		return "", err
	}
	return kindOf(st.Mode()), nil
}

func kindOf(mode fs.FileMode) Kind {
	switch {
	case mode.IsRegular():
		return Regular
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		return Block
	}
	return Other
}

// Size returns the length of an open device or regular file in bytes.
func Size(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	switch kindOf(st.Mode()) {
	case Regular:
		return st.Size(), nil
	case Block:
		var size uint64 // BLKGETSIZE64 writes 8 bytes whatever the word size
		if err := ioctl(f, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
			return 0, fmt.Errorf("%s: size: %w", f.Name(), err)
		}
		return int64(size), nil
	}
	return 0, failure.New(failure.Precondition, "%s: size: %s", f.Name(), Other)
}

// Flush returns when everything written to f, through f or another
// descriptor, is on the disk. Its error is the point: it is where a device
// says that an earlier write was lost.
//
// fsync(2) of a device writes its page cache back and then flushes the
// drive's own. BLKFLSBUF would add nothing but dropping the clean pages, and
// it reports no lost write.
func Flush(f *os.File) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("%s: flush: %w", f.Name(), kinded(err))
	}
	return nil
}

// OpenExclusive opens a device or regular file for reading and writing, not
// through the page cache's back but buffered. A device is claimed with O_EXCL
// (open(2), "Under Linux 2.6 and newer"): as long as it is open nobody can
// mount it or put another device on it, and one that is mounted or claimed is
// a failure.Conflict. O_EXCL does not keep out a plain open.
func OpenExclusive(path string) (*os.File, error) {
	kind, err := KindOf(path)
	if err != nil {
		return nil, err
	}
	flags := os.O_RDWR
	switch kind {
	case Block:
		flags |= os.O_EXCL
	case Other:
		return nil, failure.New(failure.Precondition, "%s: %s", path, Other)
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, kinded(err)
	}
	return f, nil
}

// nodeWait bounds WaitNode, nodePoll is how often it looks.
const (
	nodeWait = 15 * time.Second
	nodePoll = 10 * time.Millisecond
)

// WaitNode waits until path leads to a block device of more than no length,
// as it does soon after an activation, when udev has made the node and the
// links. It returns the device's size in bytes.
//
// A node that does not come within 15 s, or before ctx ends, is a
// failure.Temporary. A path that leads to anything but a block device is a
// failure.Precondition at once: writing there would fill /dev.
func WaitNode(ctx context.Context, path string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	tick := time.NewTicker(nodePoll)
	defer tick.Stop()
	for {
		size, err := nodeSize(path)
		if err == nil && size > 0 || failure.KindOf(err) == failure.Precondition {
			return size, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err == nil {
				err = errors.New("it has no length yet")
			}
			err = failure.New(failure.Temporary, "%s: wait for the device node: %w (%w)", path, err, context.Cause(ctx))
			return 0, failure.Hint(err, "run `udevadm settle` and `ls -l %s`; `dmesg` tells more", path)
		}
	}
}

// nodeSize looks once. It opens read-only and not exclusively: udev's own
// probing holds the device at that moment.
func nodeSize(path string) (int64, error) {
	kind, err := KindOf(path)
	if err != nil {
		return 0, err
	}
	if kind != Block {
		return 0, failure.New(failure.Precondition, "%s: %s, not a %s", path, kind, Block)
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return Size(f)
}

// kinded adds the kind that an errno stands for.
func kinded(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return failure.Wrap(failure.Conflict, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return failure.Wrap(failure.NoSpace, err)
	case errors.Is(err, fs.ErrNotExist):
		return failure.Wrap(failure.NotFound, err)
	}
	return err
}

// ioctl runs one on f without switching it to blocking mode, as f.Fd would.
func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
			if errno != unix.EINTR {
				return
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}
