// SPDX-License-Identifier: Apache-2.0

package vhd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
)

// Reader reads the disk in an image. It is for one goroutine.
type Reader struct {
	Size int64 // of the disk in bytes
	UUID uuid.UUID

	image  io.ReaderAt
	block  int64    // bytes
	bitmap int64    // bytes before each block
	table  []uint32 // sector at which a block's bitmap is, or unused

	known int    // block that bits is of, or -1
	bits  []byte // bitmap
}

func refuse(format string, args ...any) error {
	err := failure.New(failure.Precondition, "vhd image: %w: "+format, append([]any{ErrImage}, args...)...)
	return failure.Hint(err, "see `qemu-img info -f vpc` and `qemu-img check -f vpc`; `qemu-img convert -f vpc -O vpc -o subformat=dynamic` makes one of another kind")
}

// Open reads the image's structures. length is the image's in bytes; the logical
// volume that it lies on may be longer, since the copy of the footer at the start
// is what counts.
func Open(image io.ReaderAt, length int64) (*Reader, error) {
	foot := make([]byte, sector)
	if err := read(image, foot, 0); err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if string(foot[:8]) != "conectix" || !valid(foot, 64) || be.Uint32(foot[12:])>>16 != 1 {
		return nil, refuse("it does not begin with a footer of version 1")
	}
	switch kind := be.Uint32(foot[60:]); kind {
	case dynamic:
	case differencing:
		return nil, refuse("it is a differencing image, without its parent")
	case fixed:
		return nil, refuse("it is a fixed image")
	default:
		return nil, refuse("disk type %d", kind)
	}
	size := be.Uint64(foot[48:])
	if size == 0 || size > MaxSize || size%sector != 0 {
		return nil, refuse("a disk of %d bytes", size)
	}
	r := &Reader{Size: int64(size), UUID: uuid.UUID(foot[68:84]), image: image, known: -1}
	if err := r.readHeader(be.Uint64(foot[16:]), length); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Reader) readHeader(at uint64, length int64) error {
	if length < headerSize || at%sector != 0 || at < sector || at > uint64(length-headerSize) {
		return refuse("its header would be at %d", at)
	}
	b := make([]byte, headerSize)
	if err := read(r.image, b, int64(at)); err != nil {
		return err
	}
	be := binary.BigEndian
	if string(b[:8]) != "cxsparse" || !valid(b, 36) || be.Uint32(b[24:])>>16 != 1 {
		return refuse("its header is not one of version 1")
	}
	table, entries, block := be.Uint64(b[16:]), int64(be.Uint32(b[28:])), int64(be.Uint32(b[32:]))
	// A bitmap of whole sectors covers 2 MiB or a multiple; smaller blocks have a
	// sector all the same.
	if block < 4096 || block > 256<<20 || block&(block-1) != 0 {
		return refuse("blocks of %d bytes", block)
	}
	need := (r.Size + block - 1) / block
	if entries < need || table%sector != 0 || table < sector || table > uint64(length) || need*4 > length-int64(table) {
		return refuse("a table of %d entries at %d, of %d blocks", entries, table, need)
	}
	r.block, r.bitmap = block, (block/sector/8+sector-1)/sector*sector
	raw := make([]byte, need*4)
	if err := read(r.image, raw, int64(table)); err != nil {
		return err
	}
	for i := range need {
		r.table = append(r.table, be.Uint32(raw[i*4:]))
	}
	return r.checkTable(at, table, uint64(need)*4, length)
}

// checkTable wants each block within the image, and nothing on top of each other.
func (r *Reader) checkTable(header, table, tableLength uint64, length int64) error {
	taken := []Range{{0, sector}, {int64(header), headerSize}, {int64(table), int64(tableLength)}}
	for _, s := range r.table {
		if s != unused {
			taken = append(taken, Range{int64(s) * sector, r.bitmap + r.block})
		}
	}
	slices.SortFunc(taken, func(a, b Range) int { return int((a.Offset - b.Offset) / sector) })
	for i, t := range taken {
		if t.End() > length || i > 0 && t.Offset < taken[i-1].End() {
			return refuse("something of %d bytes at %d lies on something else or beyond the end", t.Length, t.Offset)
		}
	}
	return nil
}

// Ranges calls do for each range that has data, in ascending order, until it
// fails.
func (r *Reader) Ranges(do func(Range) error) error {
	var last Range
	for i, s := range r.table {
		if s == unused {
			continue
		}
		bits, err := r.load(i)
		if err != nil {
			return err
		}
		from := int64(i) * r.block
		for at := from; at < min(from+r.block, r.Size); at += sector {
			switch {
			case !has(bits, at-from):
				continue
			case last.Length > 0 && last.End() == at:
				last.Length += sector
				continue
			case last.Length > 0:
				if err := do(last); err != nil {
					return err
				}
			}
			last = Range{at, sector}
		}
	}
	if last.Length == 0 {
		return nil
	}
	return do(last)
}

// load returns the bitmap of an allocated block.
func (r *Reader) load(i int) ([]byte, error) {
	if r.known == i {
		return r.bits, nil
	}
	bits := make([]byte, r.bitmap)
	if err := read(r.image, bits, int64(r.table[i])*sector); err != nil {
		return nil, err
	}
	r.known, r.bits = i, bits
	return bits, nil
}

// has says whether the sector at an offset of a block has data.
func has(bits []byte, offset int64) bool {
	s := offset / sector
	return bits[s/8]&(0x80>>(s%8)) != 0
}

// ReadAt is io.ReaderAt of the disk.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("vhd image: negative offset")
	}
	n := 0
	for n < len(p) && off < r.Size {
		part, err := r.readPart(p[n:][:min(int64(len(p)-n), r.block-off%r.block, r.Size-off)], off)
		if err != nil {
			return n, err
		}
		n, off = n+part, off+int64(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readPart reads within one block, as far as it all has data or all has none.
func (r *Reader) readPart(p []byte, off int64) (int, error) {
	i := int(off / r.block)
	if r.table[i] == unused {
		clear(p)
		return len(p), nil
	}
	bits, err := r.load(i)
	if err != nil {
		return 0, err
	}
	within := off % r.block
	data := has(bits, within)
	end := within - within%sector + sector
	for end < within+int64(len(p)) && has(bits, end) == data {
		end += sector
	}
	p = p[:min(int64(len(p)), end-within)]
	if !data {
		clear(p)
		return len(p), nil
	}
	return len(p), read(r.image, p, int64(r.table[i])*sector+r.bitmap+within)
}

func read(from io.ReaderAt, p []byte, off int64) error {
	n, err := from.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) || err == nil {
		return refuse("it is cut off at %d", off+int64(n))
	}
	return fmt.Errorf("vhd image: read %d bytes at %d: %w", len(p), off, err)
}
