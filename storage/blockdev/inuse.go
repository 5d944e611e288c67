// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// ErrUnknownUse says that nobody was seen using the device or file, but that
// not every process could be looked at. It counts as in use wherever data
// could be lost.
var ErrUnknownUse = failure.Wrap(failure.Precondition, errors.New("cannot tell whether it is in use"))

// InUse says whether anybody but this process uses the device or regular file
// at path, and who, in words for a message. It looks for
//   - a mount, swap, or claim by the kernel or a program (O_EXCL is EBUSY),
//   - devices on top: a mapped or md device, a loop device,
//   - processes that have it open, wherever they found its node.
//
// The answer is of the moment. "Nobody" without a look at every process (not
// root) is ErrUnknownUse; a path that leads nowhere is a failure.NotFound. A
// file that is only mapped into memory is not noticed.
func InUse(path string) (holder string, inUse bool, err error) {
	return system{proc: "/proc", sys: "/sys"}.inUse(path)
}

// Opened says whether another process has the device or file open, or a loop
// device is over it. Of what InUse looks for that leaves out claims, and devices
// on top, which the caller looks at by themselves.
func Opened(path string) (holder string, open bool, err error) {
	var id identity
	if err := id.of(path); errors.Is(err, fs.ErrNotExist) {
		return "", false, failure.Wrap(failure.NotFound, err)
	} else if err != nil {
		return "", false, fmt.Errorf("%s: %w", path, err)
	}
	s := system{proc: "/proc", sys: "/sys"}
	return first(path, id, s.loops, s.processes)
}

// system is where the kernel's file systems are mounted; tests move them.
type system struct{ proc, sys string }

func (s system) inUse(path string) (string, bool, error) {
	kind, err := KindOf(path)
	if err != nil {
		return "", false, err
	}
	var id identity
	if err := id.of(path); err != nil {
		return "", false, fmt.Errorf("%s: %w", path, err)
	}
	look := []func(string, identity) (string, error){s.loops, s.processes}
	switch kind {
	case Block:
		look = append([]func(string, identity) (string, error){s.holders, claimed}, look...)
	case Regular:
		if unopened(path) {
			return "", false, nil
		}
	default:
		return "", false, failure.New(failure.Precondition, "%s: %s", path, Other)
	}
	return first(path, id, look...)
}

// first asks one after the other who uses the device or file.
func first(path string, id identity, look ...func(string, identity) (string, error)) (string, bool, error) {
	var unsure error
	for _, who := range look {
		holder, err := who(path, id)
		if holder != "" {
			return holder, true, nil
		}
		unsure = errors.Join(unsure, err)
	}
	if unsure != nil {
		return "", false, fmt.Errorf("%s: %w", path, unsure)
	}
	return "", false, nil
}

// unopened says that nobody at all has the file open, ourselves included: the
// kernel grants a write lease only then (fcntl(2), F_SETLEASE). It is the one
// answer that does not depend on what /proc shows us. False means nothing;
// some file systems know no leases.
func unopened(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close() // gives the lease back
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	return err == nil
}

// identity is what makes two open files the same: the device number of a
// block device, else file system and inode. Names differ between mount
// namespaces, and libvirt gives QEMU a /dev of its own.
type identity struct {
	block      bool
	major, min uint32
	inode      uint64
}

func (id *identity) of(path string) error {
	var st unix.Statx_t
	// DONT_SYNC: what is known locally is enough, and a descriptor on a dead
	// NFS server must not hang us.
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		*id = identity{block: true, major: st.Rdev_major, min: st.Rdev_minor}
		return nil
	}
	*id = identity{major: st.Dev_major, min: st.Dev_minor, inode: st.Ino}
	return nil
}

// holders finds devices on top of a block device:
// /sys/dev/block/MAJOR:MINOR/holders/NAME.
func (s system) holders(_ string, id identity) (string, error) {
	entries, err := os.ReadDir(filepath.Join(s.sys, "dev/block", fmt.Sprintf("%d:%d", id.major, id.min), "holders"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // a partition of an odd driver; claimed sees what holds it
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnknownUse, err)
	}
	if len(entries) == 0 {
		return "", nil
	}
	name := entries[0].Name()
	if dm, err := os.ReadFile(filepath.Join(s.sys, "block", name, "dm/name")); err == nil {
		name += " (" + strings.TrimSpace(string(dm)) + ")"
	}
	return "device " + name, nil
}

// claimed tries an exclusive open, which the kernel refuses for what is
// mounted, swapped on or claimed.
func claimed(path string, _ identity) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_EXCL|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		return "", f.Close()
	case errors.Is(err, unix.EBUSY):
		return "a mount, or a claim by the kernel or a program", nil
	}
	return "", fmt.Errorf("%w: %w", ErrUnknownUse, err)
}

// loops finds a loop device over a file or device: the kernel holds it
// without any descriptor or claim. /sys/block/loopN/loop/backing_file is its path.
func (s system) loops(_ string, id identity) (string, error) {
	files, err := filepath.Glob(filepath.Join(s.sys, "block/loop*/loop/backing_file"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil {
			continue // detached meanwhile
		}
		var other identity
		if other.of(strings.TrimSuffix(string(backing), "\n")) == nil && other == id {
			return "device " + filepath.Base(filepath.Dir(filepath.Dir(file))), nil
		}
	}
	return "", nil
}

// processes finds another process with the file open, by
// /proc/PID/fd/N. Processes that end while it looks are no matter; one that
// may not be looked at makes the answer unknown.
func (s system) processes(_ string, id identity) (string, error) {
	entries, err := os.ReadDir(s.proc)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnknownUse, err)
	}
	var hidden error
	seen := 0
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		seen++
		if pid == os.Getpid() {
			continue
		}
		dir := filepath.Join(s.proc, entry.Name())
		open, err := holds(filepath.Join(dir, "fd"), id)
		if open {
			return fmt.Sprintf("process %d (%s)", pid, command(dir)), nil
		}
		// In a sandbox even root may not look at the init that set it up;
		// init opens no disks.
		if err != nil && hidden == nil && !(pid == 1 && errors.Is(err, fs.ErrPermission)) {
			hidden = fmt.Errorf("%w: process %d: %w", ErrUnknownUse, pid, err)
		}
	}
	if seen == 0 {
		return "", fmt.Errorf("%w: %s shows no process", ErrUnknownUse, s.proc)
	}
	return "", hidden
}

func holds(dir string, id identity) (bool, error) {
	links, err := os.ReadDir(dir)
	if err != nil {
		return false, present(err)
	}
	for _, link := range links {
		var other identity
		err := other.of(filepath.Join(dir, link.Name()))
		if err == nil && other == id {
			return true, nil
		}
		if present(err) != nil {
			return false, err
		}
	}
	return false, nil
}

// present drops the errors of what went away meanwhile.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func command(dir string) string {
	name, err := os.ReadFile(filepath.Join(dir, "comm"))
	if err != nil {
		return "name unknown"
	}
	return failure.OneLine(string(name))
}
