// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"diskhook/storage/atomicfile"
	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
)

// tail makes [source.Size, target.Size) read zero. A guest must not find there
// what the device held before. In a target that was promised to be zero it is
// read instead, since writing zeros would allocate it: were there anything
// else, the promise was wrong, and so would be every hole of the copy.
func tail(ctx context.Context, f *os.File, source Source, target Target) error {
	if !target.Zeroed {
		return blockdev.ZeroRange(ctx, f, source.Size, target.Size-source.Size)
	}
	at, err := firstData(ctx, f, source.Size, target.Size)
	if err != nil {
		return fmt.Errorf("%s: read its end: %w", target.Path, err)
	}
	if at >= 0 {
		err := failure.New(failure.Precondition, "%s: was taken as reading zero, but has data at byte %d", target.Path, at)
		return failure.Hint(err, "if it is a thin volume, let its pool zero new blocks: `lvchange --zero y VG/POOL`")
	}
	return nil
}

// flush brings everything to the disk. It may hang as long as the disk does.
func flush(ctx context.Context, f *os.File, made bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if err := blockdev.Flush(f); err != nil {
		return noSpace(err)
	}
	if made {
		return atomicfile.Sync(filepath.Dir(f.Name()))
	}
	return nil
}
