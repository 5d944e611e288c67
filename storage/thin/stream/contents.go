// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/progress"
	"diskhook/storage/thin/vhd"
)

// Contents is what a disk has: in ranges, which ascend, and zeros elsewhere.
type Contents struct {
	Size   int64 // bytes
	Ranges []vhd.Range
	Data   io.ReaderAt // at offsets of the disk
}

// Contents is what is behind a stream's addresses. data is the data volume of the
// stream's cluster; see Fits.
func (s Stream) Contents(data io.ReaderAt) Contents {
	c := Contents{Size: int64(s.Mapping.Size), Data: s.Mapping.Contents(data)}
	for _, r := range s.Mapping.Runs {
		from := int64(r.Virtual * s.Mapping.BlockSize)
		to := min(from+int64(r.Length*s.Mapping.BlockSize), c.Size)
		c.Ranges = join(c.Ranges, vhd.Range{Offset: from, Length: to - from})
	}
	return c
}

// join adds a range, to the last one if it goes on there.
func join(ranges []vhd.Range, r vhd.Range) []vhd.Range {
	if last := len(ranges) - 1; last >= 0 && ranges[last].End() == r.Offset {
		ranges[last].Length += r.Length
		return ranges
	}
	return append(ranges, r)
}

// OfVHD is what a dynamic VHD image of length bytes has; see vhd.Open for what is
// refused.
func OfVHD(image io.ReaderAt, length int64) (Contents, error) {
	r, err := vhd.Open(image, length)
	if err != nil {
		return Contents{}, err
	}
	c := Contents{Size: r.Size, Data: r}
	err = r.Ranges(func(x vhd.Range) error {
		c.Ranges = join(c.Ranges, x)
		return nil
	})
	return c, err
}

// OfRaw is what a raw image has, a file or a device of size bytes. Holes of a file
// are left out.
func OfRaw(image *os.File, size int64) (Contents, error) {
	if size <= 0 || size%512 != 0 {
		err := failure.New(failure.Precondition, "%s: %d bytes are no disk of whole sectors of 512", image.Name(), size)
		return Contents{}, failure.Hint(err, "round its size up: `truncate -s %%512 %s`", image.Name())
	}
	c := Contents{Size: size, Data: image}
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(image.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole up to the end
			return c, nil
		case err != nil: // a device, or a file system that does not know
			c.Ranges = []vhd.Range{{Offset: 0, Length: size}}
			return c, nil
		}
		to, err := unix.Seek(int(image.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return Contents{}, fmt.Errorf("%s: find holes: %w", image.Name(), err)
		}
		from, to = from&^511, min((to+511)&^511, size)
		c.Ranges = join(c.Ranges, vhd.Range{Offset: from, Length: to - from})
		at = to
	}
	return c, nil
}

// WriteVHD writes a dynamic VHD image, in one go and in order.
func (c Contents) WriteVHD(ctx context.Context, w io.Writer, id uuid.UUID, created time.Time) error {
	return vhd.Write(ctx, w, vhd.Image{Size: c.Size, UUID: id, Created: created}, c.Ranges, c.Data)
}

// chunk is how much is copied at a time; zeros are left out by the piece.
const (
	chunk = 1 << 20
	piece = 64 << 10
)

// Copy writes it to a disk that is as large or larger and reads as zeros: pieces
// of zeros are not written, so that a thin volume does not allocate for them.
// Flushing is the caller's.
func (c Contents) Copy(ctx context.Context, to io.WriterAt, report progress.Func) error {
	var done, total int64
	for _, r := range c.Ranges {
		total += r.Length
	}
	buffer, zeros := make([]byte, chunk), make([]byte, piece)
	for _, r := range c.Ranges {
		for at := r.Offset; at < r.End(); {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			// Up to the next multiple, so that pieces are whole blocks of the volume.
			part := buffer[:min(chunk-at%chunk, r.End()-at)]
			if n, err := c.Data.ReadAt(part, at); n < len(part) {
				return fmt.Errorf("read %d bytes at %d: %w", len(part), at, errors.Join(err, io.ErrUnexpectedEOF))
			}
			if err := writeData(to, part, at, zeros); err != nil {
				return err
			}
			at, done = at+int64(len(part)), done+int64(len(part))
			if report != nil {
				report(done, total)
			}
		}
	}
	return nil
}

// writeData writes what has data of a part, in as few requests as can be.
func writeData(to io.WriterAt, part []byte, at int64, zeros []byte) error {
	start := -1 // of what is to be written
	flush := func(end int) error {
		if start < 0 {
			return nil
		}
		if _, err := to.WriteAt(part[start:end], at+int64(start)); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", end-start, at+int64(start), failure.Full(err))
		}
		start = -1
		return nil
	}
	for i := 0; i < len(part); {
		n := min(piece-int((at+int64(i))%piece), len(part)-i)
		if bytes.Equal(part[i:i+n], zeros[:n]) {
			if err := flush(i); err != nil {
				return err
			}
		} else if start < 0 {
			start = i
		}
		i += n
	}
	return flush(len(part))
}
