// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"
	"path/filepath"

	"github.com/google/uuid"

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

// Unused fails with ErrForeign if somebody's data lies where the label of a data
// volume goes: in a sector that is neither zeros nor begins as a header does. To
// those who create, half a first write is as good as none, whatever it left.
func Unused(dev Device, cluster uuid.UUID) error {
	b, err := readFull(dev, 0, 2*block)
	if err != nil {
		return err
	}
	place := label(dev, cluster).place
	for at := 0; at < len(b); at += sector {
		if _, reason := place.decodeHeader(b[at:][:sector]); errors.Is(reason, ErrForeign) {
			return place.refuse(ErrForeign, "sector %d: %s", at/sector, place.describe(b[at:], reason))
		}
	}
	return nil
}
