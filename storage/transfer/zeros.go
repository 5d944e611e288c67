// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// zeroBlock is how much is compared at a time.
const zeroBlock = 1 << 20

// firstData returns the offset of the first block in [from, to) that does not
// read zero, down to the sector, or -1.
func firstData(ctx context.Context, f *os.File, from, to int64) (int64, error) {
	zero, buf := make([]byte, zeroBlock), make([]byte, zeroBlock)
	for at := from; at < to; at += zeroBlock {
		if err := ctx.Err(); err != nil {
			return -1, err
		}
		n, err := f.ReadAt(buf[:min(zeroBlock, to-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return -1, err
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			i := bytes.IndexFunc(buf[:n], func(r rune) bool { return r != 0 })
			return at + int64(i)&^511, nil
		}
	}
	return -1, nil
}

// noSpace gives a full file system or quota its kind.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return failure.Hint(failure.Wrap(failure.NoSpace, err), "free space there, then start it again")
	}
	return err
}
