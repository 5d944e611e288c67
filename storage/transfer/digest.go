// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
	"diskhook/storage/qcow2map"
)

// chunkSize is the piece of which a digest is one of digests, and the unit of
// a cursor. It never changes: that would change every digest.
const chunkSize = 4 << 20

// digestPrefix begins a digest, hexadecimal digits follow. The digest of a disk
// is the SHA-256 of the SHA-256 sums (32 bytes each) of its chunks in order,
// the last one as short as it is. So chunks can be summed in any order and side
// by side, and one of zeros need not be read.
const digestPrefix = "sha256-4m:"

func digestText(outer hash.Hash) string { return digestPrefix + hex.EncodeToString(outer.Sum(nil)) }

type chunkSum = [sha256.Size]byte

// zeroSum is the sum of n zeros.
func zeroSum(n int64) chunkSum { return sha256.Sum256(make([]byte, n)) }

func saveDigest(outer hash.Hash) []byte {
	state, err := outer.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil // then the target is read at the end
	}
	return state
}

func loadDigest(state []byte) (hash.Hash, error) {
	outer := sha256.New()
	if len(state) == 0 {
		return nil, errors.New("none was kept")
	}
	return outer, outer.(encoding.BinaryUnmarshaler).UnmarshalBinary(state)
}

// digest reads the first size bytes of a target from its storage and sums them
// up, as the native copy does with what it reads.
func digest(ctx context.Context, target Target, size int64) (string, error) {
	f, err := os.OpenFile(target.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// For storage without direct I/O; what was written is on the disk by now.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	outer, file := sha256.New(), directio.New(f)
	buf, zeros := directio.Buffer(chunkSize), zeroSum(chunkSize)
	holes := rawMap{f: f, size: size, holes: !target.Block}
	for off := int64(0); off < size; off += chunkSize {
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("%s: digest: %w", target.Path, err)
		}
		n := min(chunkSize, size-off)
		if x, err := holes.Next(off); err == nil && x.Kind != qcow2map.Data && x.Len >= chunkSize && n == chunkSize {
			_, _ = outer.Write(zeros[:])
			continue
		}
		if got, err := file.ReadAt(buf[:n], off); err != nil {
			if errors.Is(err, io.EOF) {
				err = failure.New(failure.Problems, "it ends at %d", off+int64(got))
			}
			return "", fmt.Errorf("%s: digest: %w", target.Path, err)
		}
		sum := sha256.Sum256(buf[:n])
		_, _ = outer.Write(sum[:])
	}
	return digestText(outer), nil
}

// proof reads back what was copied, and compares. With a target that is not what
// was read nobody is to go on.
func (c *copying) proof(ctx context.Context) error {
	imagelock.Release(c.f)
	err := c.compare(ctx)
	if errors.Is(err, failure.Problems) && c.o.Cursor != "" {
		err = errors.Join(err, RemoveCursor(c.o.Cursor))
	}
	return err
}

func (c *copying) compare(ctx context.Context) error {
	if c.outer == nil {
		if err := c.Engine.Verify(ctx, c.source, c.target, c.o.User); err != nil {
			return err
		}
	}
	return c.session.do(ctx, c.target.Path, c.o.IOClass, func() error {
		written, err := digest(ctx, c.target, c.source.Size)
		if err != nil {
			return err
		}
		if c.outer != nil && digestText(c.outer) != written {
			return differs(c.source, c.target)
		}
		at, err := firstData(ctx, c.f, c.source.Size, c.target.Size)
		if err == nil && at >= 0 {
			err = differs(c.source, c.target)
		}
		c.result.Digest = written
		return err
	})
}
