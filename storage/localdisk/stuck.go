// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"os"
	"strconv"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// A copy process that is told to stop says how it ended and gives up the disk's
// lock, even while storage that hangs holds one of its reads. But the kernel
// keeps a process until its read returns, and with it the volume that it writes
// to open; a program that it ran keeps the lock. So the copy stays UPDATING,
// and cannot be removed or gone on with, until the storage answers.

// stuck says that of a copy, by what is known of it.
func stuck(c Copy, busy bool, st *progress.Status) bool {
	if st == nil || c.State != Updating || st.State != progress.Failed || time.Since(st.Updated) < patience {
		return false
	}
	if busy {
		return st.Cancelled // else it may be a verb that has the lock
	}
	_, err := os.Stat("/proc/" + strconv.Itoa(st.PID))
	return st.PID > 0 && err == nil && c.Open != nil && *c.Open
}

// stuckError is the veto of a start that comes meanwhile.
func stuckError(d Disk, st progress.Status) error {
	err := failure.New(failure.Temporary, "%s: its last copy %s", d, stuckWords(st))
	return failure.Hint(err, "%s", stuckHint)
}

const stuckHint = "check the storage of its source (`journalctl -k`); the copy ends when that answers, then start again"

func stuckWords(st progress.Status) string {
	how := "failed"
	if st.Cancelled {
		how = "was cancelled"
	}
	return how + "; waits for its storage, which does not answer"
}
