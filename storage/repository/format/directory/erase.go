// SPDX-License-Identifier: Apache-2.0

package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
	"diskhook/storage/repository/format"
)

// Erase implements format.Volumes. Whoever reads or writes the file with QEMU's locks
// keeps it as it is.
func (p *Place) Erase(ctx context.Context, id, kind string, how format.Erasure, progress func(done, total int64)) error {
	if err := checkVolume(id, kind); err != nil {
		return err
	}
	path := p.Path(id, kind)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return failure.Denied(err)
	}
	defer f.Close()
	if err := imagelock.Write(f); err != nil && !errors.Is(err, imagelock.ErrNoLocks) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return blockdev.Erase(ctx, f, how.Zero, how.Discard, progress)
}
