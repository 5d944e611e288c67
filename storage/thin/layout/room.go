// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"path/filepath"

	"diskhook/storage/failure"
)

// noRoom says that two copies do not fit.
func (s sealed) noRoom(need int64) error {
	err := failure.New(failure.NoSpace, "%s: %d bytes do not fit beside the copy that is valid", s.place, need)
	return failure.Hint(err, "run `lvextend -L +%db %s` on the host that is master", roundUp(2*need), filepath.Clean(s.dev.Name()))
}

// Wipe makes a new volume empty. lvcreate(8) clears the first 4 KiB only, and
// what an earlier owner left in the second header block would be refused. Never
// call it on a volume that somebody may still need.
func Wipe(dev Device) error { return writeFull(dev, 0, make([]byte, 2*block)) }
