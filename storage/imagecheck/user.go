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

// openAs opens path for reading with the file system identity of user. That
// identity belongs to the thread, so the thread is not used for anything else
// again: it ends with its goroutine.
func openAs(path string, user *command.Credential) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if user == nil || int(user.UID) == os.Geteuid() {
		return unix.Open(path, flags, 0)
	}
	type opened struct {
		fd  int
		err error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread()
		if err := become(user); err != nil {
			done <- opened{-1, err}
			return
		}
		fd, err := unix.Open(path, flags, 0)
		done <- opened{fd, err}
	}()
	o := <-done
	return o.fd, o.err
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
