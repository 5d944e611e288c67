// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// Overwrite writes zeros over all data that f has, in place, and flushes it, so that
// what was there can be read neither from f nor from whoever gets its blocks next.
// ZeroRange does not do for that: it has a file system note that blocks read zero and
// leaves on the disk what they hold. progress, if there is one, hears of bytes done
// and in all.
//
// A file's holes stay holes, and parts that hold zeros are not written, so that one
// that was left in the middle is gone through quickly and needs no room. Where the
// storage below writes elsewhere (btrfs, blocks that a reflink shares, flash) the old
// blocks are its own business. f must be open for reading and writing and not with
// O_DIRECT. When ctx ends, some of it may be zero.
func Overwrite(ctx context.Context, f *os.File, progress func(done, total int64)) error {
	size, err := Size(f)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	over := overwriteFile
	if kindOf(st.Mode()) == Block {
		over = overwriteDevice
	}
	if err := over(ctx, f, size, progress); err != nil {
		return fmt.Errorf("%s: overwrite: %w", f.Name(), kinded(err))
	}
	return Flush(f)
}

// Erase overwrites what f holds, then discards all of it, as it is asked to. Storage that
// cannot discard has nothing to give back, which is no error.
func Erase(ctx context.Context, f *os.File, zero, discard bool, progress func(done, total int64)) error {
	if zero {
		if err := Overwrite(ctx, f, progress); err != nil {
			return err
		}
	}
	if !discard {
		return nil
	}
	size, err := Size(f)
	if err == nil {
		err = DiscardRange(ctx, f, 0, size)
	}
	if errors.Is(err, failure.Precondition) {
		return nil
	}
	if err != nil {
		return err
	}
	return Flush(f)
}

func overwriteDevice(ctx context.Context, f *os.File, size int64, progress func(done, total int64)) error {
	for at := int64(0); at < size; at += zeroChunk {
		if err := zeroDevice(ctx, f, at, min(zeroChunk, size-at)); err != nil {
			return err
		}
		progress(min(at+zeroChunk, size), size)
	}
	return ctx.Err()
}

func overwriteFile(ctx context.Context, f *os.File, size int64, progress func(done, total int64)) error {
	buffer, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < size; {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // there is only a hole up to the end
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = from; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := f.ReadAt(buffer[:min(int64(len(buffer)), end-at)], at)
			if err != nil && !errors.Is(err, io.EOF) || n == 0 {
				return errors.Join(err, ctx.Err())
			}
			if !bytes.Equal(buffer[:n], zeros[:n]) {
				if _, err := f.WriteAt(zeros[:n], at); err != nil {
					return err
				}
			}
			at += int64(n)
			progress(at, size)
		}
	}
	progress(size, size)
	return ctx.Err()
}
