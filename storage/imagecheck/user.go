// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
)

// assume gives this goroutine the file system identity of user, for everything
// that it does from here on: on an export that squashes root, root may not even
// look for a path. The identity belongs to the thread, which is kept from all
// other goroutines and ends with this one.
func assume(user *command.Credential) error {
	if user == nil || int(user.UID) == os.Geteuid() {
		return nil
	}
	runtime.LockOSThread()
	return become(user)
}

// become sets groups, group and user of this thread, as far as files go.
// Leaving uid 0 also drops the capabilities that override permissions.
func become(user *command.Credential) error {
	if errno := setgroups(user.Groups); errno != 0 {
		return fmt.Errorf("become uid %d: setgroups: %w", user.UID, errno)
	}
	_, _ = unix.SetfsgidRetGid(int(user.GID))
	_, _ = unix.SetfsuidRetUid(int(user.UID))
	// Both report the former id whether they worked or not; asking with an
	// invalid one changes nothing and tells.
	gid, _ := unix.SetfsgidRetGid(-1)
	uid, _ := unix.SetfsuidRetUid(-1)
	if gid != int(user.GID) || uid != int(user.UID) {
		return fmt.Errorf("become uid %d: %w", user.UID, syscall.EPERM)
	}
	return nil
}

// setgroups changes this thread only; syscall.Setgroups would change them all.
func setgroups(groups []uint32) syscall.Errno {
	first := unsafe.Pointer(unsafe.SliceData(groups))
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0)
	return errno
}
