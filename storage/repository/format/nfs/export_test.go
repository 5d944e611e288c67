// SPDX-License-Identifier: Apache-2.0

package nfs

import (
	"golang.org/x/sys/unix"

	"diskhook/storage/repository/format"
)

// Die ends the holder of a lock as a crash would: nothing more is written.
func Die(l format.Lock) {
	h := l.(*held)
	h.heart.Stop(h.lock.Release)
}

// Unlock takes the lock from its holder, who does not notice.
func Unlock(l format.Lock) error {
	return unix.Flock(int(l.File().Fd()), unix.LOCK_UN)
}
