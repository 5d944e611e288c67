// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// open opens the target before anything is written to it: the kernel reports
// a failed write-back to every descriptor that was open at that time, so the
// flush at the end also fails for what qemu-img wrote. begun says that what is
// in it is known.
func (e *Engine) open(target *Target, user *command.Credential, begun bool) (f *os.File, made bool, err error) {
	flags := os.O_RDWR
	if !target.Block {
		flags |= unix.O_NOFOLLOW
		if f, made, err = create(*target, user); made || err != nil {
			target.Zeroed = true
			return f, made, err
		}
	}
	// A device that is not there must not become a file in /dev; O_NONBLOCK:
	// a FIFO put there must not hold us.
	f, err = os.OpenFile(target.Path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, false, err
	}
	if err := e.inspect(f, target, begun); err != nil {
		_ = f.Close()
		return nil, false, err
	}
	return f, false, nil
}

// create makes a file target unless it exists.
func create(target Target, user *command.Credential) (_ *os.File, made bool, err error) {
	f, err := os.OpenFile(target.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if os.IsExist(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	err = f.Truncate(target.Size)
	if err == nil && user != nil && int(user.UID) != os.Geteuid() {
		err = f.Chown(int(user.UID), int(user.GID))
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(target.Path)
		return nil, false, fmt.Errorf("%s: make: %w", target.Path, noSpace(err))
	}
	return f, true, nil
}

// inspect holds the target against what is said of it.
func (e *Engine) inspect(f *os.File, target *Target, begun bool) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	kind := st.Mode().Type()
	switch {
	case target.Block && (kind&os.ModeDevice == 0 || kind&os.ModeCharDevice != 0):
		return failure.New(failure.Precondition, "%s: not a block device", target.Path)
	case !target.Block && kind != 0:
		return failure.New(failure.Precondition, "%s: not a regular file", target.Path)
	}
	size, err := blockdev.Size(f)
	if err != nil {
		return err
	}
	if size < target.Size {
		return failure.New(failure.Precondition, "%s: has %d bytes, %d are needed", target.Path, size, target.Size)
	}
	if target.Zeroed && !target.Block && !begun && hasData(f, target.Size) {
		e.note(target.Path + ": has data in it, so zeros are written")
		target.Zeroed = false
	}
	return nil
}

// hasData says whether a file has anything but holes and unwritten extents in
// its first size bytes. A file system that cannot tell says yes.
func hasData(f *os.File, size int64) bool {
	at, err := f.Seek(0, unix.SEEK_DATA)
	return err == nil && at < size
}

// still says whether path, by which qemu-img wrote, is what f has open. A
// device may meanwhile have got another node.
func still(f *os.File, path string) error {
	var opened, now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &opened); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Stat(path, &now); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	same := opened.Dev == now.Dev && opened.Ino == now.Ino
	if opened.Mode&unix.S_IFMT == unix.S_IFBLK {
		same = opened.Rdev == now.Rdev && now.Mode&unix.S_IFMT == unix.S_IFBLK
	}
	if !same {
		err := failure.New(failure.Conflict, "%s: was replaced while it was written", path)
		return failure.Hint(err, "find out who else writes to %s, then start it again", filepath.Dir(path))
	}
	return nil
}
