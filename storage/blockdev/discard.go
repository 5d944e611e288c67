// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// DiscardRange tells the storage below f that n bytes at off are needed no
// longer (BLKDISCARD; a file gets a hole). It is a hint, not a wipe: what is
// read there afterwards depends on the disk. On a device the range must be of
// whole logical blocks. Storage that cannot discard is a failure.Precondition.
// When ctx ends, some of the range may be discarded.
func DiscardRange(ctx context.Context, f *os.File, off, n int64) error {
	if err := inside(f, "discard", off, n); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	discard := punchHole
	if kindOf(st.Mode()) == Block {
		discard = discardBlocks
	}
	for end := off + n; off < end; off += discardChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := discard(f, off, min(discardChunk, end-off))
		if unsupported(err) {
			err = failure.Hint(failure.Wrap(failure.Precondition, err), "its storage cannot discard; wipe with zero or none")
		}
		if err != nil {
			return fmt.Errorf("%s: discard %d bytes at %d: %w", f.Name(), n, off, kinded(err))
		}
	}
	return nil
}

// discardChunk is discarded between two looks at the context.
const discardChunk = 1 << 30

func discardBlocks(f *os.File, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	return ioctl(f, unix.BLKDISCARD, unsafe.Pointer(&span))
}

func punchHole(f *os.File, off, n int64) error {
	return allocate(f, unix.FALLOC_FL_PUNCH_HOLE, off, n)
}
