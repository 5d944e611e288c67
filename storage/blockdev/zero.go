// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroChunk is zeroed between two looks at the context: the ioctl cannot be
// interrupted, and a disk without a zeroing command writes every byte.
const zeroChunk = 64 << 20

// ZeroRange makes n bytes at off read as zeros and touches no other byte. The
// range must lie within f as it is: nothing grows. It is not durable before
// Flush.
//
// On a device the range stays allocated (BLKZEROOUT), so a thin volume gets
// every block of it mapped; there, leave out what reads as zeros anyway. A
// file's blocks stay allocated too. f must be open for writing and not with
// O_DIRECT. When ctx ends, some of the range may be zeroed.
func ZeroRange(ctx context.Context, f *os.File, off, n int64) error {
	if err := inside(f, "zero", off, n); err != nil {
		return err
	}
	if n == 0 {
		return ctx.Err()
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	zero := zeroFile
	if kindOf(st.Mode()) == Block {
		zero = zeroDevice
	}
	if err := zero(ctx, f, off, n); err != nil {
		return fmt.Errorf("%s: zero %d bytes at %d: %w", f.Name(), n, off, kinded(err))
	}
	return nil
}

// zeroDevice uses BLKZEROOUT for whole logical blocks and plain writes for
// the edges. The blocks go first: the ioctl drops cached pages of its range,
// and an edge may share a page with it.
func zeroDevice(ctx context.Context, f *os.File, off, n int64) error {
	block, err := logicalBlock(f)
	if err != nil {
		return err
	}
	end := off + n
	first := (off + block - 1) / block * block
	last := end / block * block
	if first >= last {
		return writeZeros(ctx, f, off, n)
	}
	for at := first; at < last; at += zeroChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		span := [2]uint64{uint64(at), uint64(min(zeroChunk, last-at))}
		err := ioctl(f, unix.BLKZEROOUT, unsafe.Pointer(&span))
		if unsupported(err) {
			err = writeZeros(ctx, f, at, int64(span[1]))
		}
		if err != nil {
			return err
		}
	}
	if err := writeZeros(ctx, f, off, first-off); err != nil {
		return err
	}
	return writeZeros(ctx, f, last, end-last)
}

// zeroFile lets the file system mark the range as unwritten, which keeps the
// space reserved and takes no time; where it cannot, it writes.
func zeroFile(ctx context.Context, f *os.File, off, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := allocate(f, unix.FALLOC_FL_ZERO_RANGE, off, n)
	if unsupported(err) {
		return writeZeros(ctx, f, off, n)
	}
	return err
}

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS)
}

func writeZeros(ctx context.Context, f *os.File, off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		written, err := f.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(written), n-int64(written)
	}
	return nil
}

// logicalBlock is the smallest unit that the device takes, 512 or 4096 bytes.
func logicalBlock(f *os.File) (int64, error) {
	var size int32
	if err := ioctl(f, unix.BLKSSZGET, unsafe.Pointer(&size)); err != nil {
		return 0, err
	}
	if size < 512 || size&(size-1) != 0 {
		return 0, fmt.Errorf("logical blocks of %d bytes", size)
	}
	return int64(size), nil
}
