// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/directio"
	"diskhook/storage/failure"
)

// block is the unit of everything here, in bytes: what a disk with large
// sectors writes at once, and what direct I/O has to be aligned to.
const block = directio.Align

// Device is what a format lies on. Offsets, lengths and memory of its requests
// are multiples of 4 KiB (directio.Buffer).
type Device interface {
	io.ReaderAt
	io.WriterAt
	Flush() error
	Size() int64 // in bytes
	Name() string
}

// Volume is a shared logical volume, or a file in its place.
type Volume struct {
	file   *os.File
	direct *directio.File
	shared bool // a device: other hosts write to it
	size   int64
}

// Open opens a volume for reading, and for writing if asked. A block device that
// cannot be read past the page cache is refused: what another host writes would
// not be seen. Close it after use.
func Open(path string, write bool) (*Volume, error) {
	flags := unix.O_CLOEXEC | os.O_RDONLY
	if write {
		flags = unix.O_CLOEXEC | os.O_RDWR
	}
	kind, err := blockdev.KindOf(path)
	if err != nil {
		return nil, err
	}
	if kind == blockdev.Other {
		return nil, failure.New(failure.Precondition, "%s: %s", path, kind)
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, failure.Denied(err)
	}
	v := &Volume{file: f, direct: directio.New(f), shared: kind == blockdev.Block}
	if v.size, err = blockdev.Size(f); err == nil {
		err = v.cached()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return v, nil
}

// cached fails if a device is read through the page cache.
func (v *Volume) cached() error {
	if v.shared && !v.direct.Direct() {
		return failure.New(failure.Precondition, "%s: the device refuses direct I/O, which sharing it with other hosts needs", v.Name())
	}
	return nil
}

// ReadAt is io.ReaderAt.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.direct.ReadAt(p, off)
	return n, errors.Join(err, v.cached())
}

// WriteAt is io.WriterAt.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	n, err := v.direct.WriteAt(p, off)
	return n, errors.Join(err, v.cached())
}

// Flush returns when what was written is on the disk.
func (v *Volume) Flush() error { return blockdev.Flush(v.file) }

// Size is what it was when the volume was opened, in bytes.
func (v *Volume) Size() int64 { return v.size }

// Name is the path.
func (v *Volume) Name() string { return v.file.Name() }

// Close closes it.
func (v *Volume) Close() error { return v.file.Close() }

// readFull reads a range, rounded to blocks, of a device.
func readFull(dev Device, off, length int64) ([]byte, error) {
	b := directio.Buffer(roundUp(length))
	n, err := dev.ReadAt(b, off)
	switch {
	case n == len(b):
		return b[:length], nil
	case err == nil || errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: read %d bytes at %d: %w", dev.Name(), length, off, io.ErrUnexpectedEOF)
	}
	return nil, fmt.Errorf("%s: read %d bytes at %d: %w", dev.Name(), length, off, err)
}

// writeFull writes contents, with zeros up to a whole block, and flushes.
func writeFull(dev Device, off int64, contents []byte) error {
	b := directio.Buffer(roundUp(int64(len(contents))))
	copy(b, contents)
	if _, err := dev.WriteAt(b, off); err != nil {
		return fmt.Errorf("%s: write %d bytes at %d: %w", dev.Name(), len(b), off, err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("%s: flush: %w", dev.Name(), err)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + block - 1) &^ (block - 1) }
