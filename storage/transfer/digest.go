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

// Digest reads the first size bytes of a target and sums them up, as Copy does
// with Options.Digest while it copies.
func (e *Engine) Digest(ctx context.Context, target Target, size int64) (string, error) {
	f, err := os.OpenFile(target.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
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

// proof computes the digest and compares.
func (c *copying) proof(ctx context.Context) error {
	read := ""
	if c.outer != nil {
		read = digestText(c.outer)
		c.result.Digest = read
	}
	if !c.o.Verify && (read != "" || !c.o.Digest) {
		return nil
	}
	imagelock.Release(c.f)
	if c.o.Verify && read == "" {
		if err := c.Engine.Verify(ctx, c.source, c.target, c.o.User); err != nil || !c.o.Digest {
			return err
		}
	}
	var written string
	err := c.session.do(ctx, c.target.Path, c.o.IOClass, func() (err error) {
		written, err = c.Engine.Digest(ctx, c.target, c.source.Size)
		if err != nil || !c.o.Verify {
			return err
		}
		at, err := firstData(ctx, c.f, c.source.Size, c.target.Size)
		if err == nil && at >= 0 {
			err = differs(c.source, c.target)
		}
		return err
	})
	if err != nil {
		return err
	}
	if c.result.Digest = written; read != "" && read != written {
		return differs(c.source, c.target)
	}
	return nil
}
