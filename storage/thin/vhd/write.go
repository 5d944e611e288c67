// SPDX-License-Identifier: Apache-2.0

package vhd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/failure"
)

// Image is what an image says of itself.
type Image struct {
	Size    int64 // of the disk in bytes, a multiple of 512
	UUID    uuid.UUID
	Created time.Time
}

// Write writes an image of a disk that has data in ranges, ascending and without
// overlap, and reads as zeros elsewhere. data is read within the ranges only, in
// ascending order, at offsets of the disk. An error leaves a part of an image.
func Write(ctx context.Context, w io.Writer, image Image, ranges []Range, data io.ReaderAt) error {
	if err := check(image.Size, ranges); err != nil {
		return err
	}
	foot := footer{image.Size, image.UUID, image.Created}.encode()
	entries := int((image.Size + blockSize - 1) / blockSize)
	table, blocks := allocate(entries, ranges)
	for _, part := range [][]byte{foot, header(entries), table} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("vhd image: %w", failure.Full(err))
		}
	}
	buffer := make([]byte, sector+blockSize)
	for _, block := range blocks {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		clear(buffer)
		var err error
		if ranges, err = fill(buffer, block, ranges, data); err != nil {
			return err
		}
		if _, err := w.Write(buffer); err != nil {
			return fmt.Errorf("vhd image: block %d: %w", block, failure.Full(err))
		}
	}
	if _, err := w.Write(foot); err != nil {
		return fmt.Errorf("vhd image: %w", failure.Full(err))
	}
	return nil
}

func check(size int64, ranges []Range) error {
	if size <= 0 || size%sector != 0 || size > MaxSize {
		err := failure.New(failure.Precondition, "vhd image: a disk of %d bytes: at most %d in whole sectors of %d", size, int64(MaxSize), sector)
		return failure.Hint(err, "export it as `--format text` or copy it with `qemu-img convert -O qcow2`")
	}
	var at int64
	for _, r := range ranges {
		if r.Offset < at || r.Length <= 0 || r.Offset%sector != 0 || r.Length%sector != 0 || r.Length > size-r.Offset {
			return fmt.Errorf("vhd image: range %d+%d after %d in a disk of %d bytes", r.Offset, r.Length, at, size)
		}
		at = r.End()
	}
	return nil
}

// allocate makes the table and lists the blocks that have data.
func allocate(entries int, ranges []Range) (table []byte, blocks []int64) {
	table = make([]byte, (entries*4+sector-1)/sector*sector)
	for i := range table {
		table[i] = 0xff
	}
	next := int64(tableAt+len(table)) / sector
	last := int64(-1)
	for _, r := range ranges {
		for block := max(last+1, r.Offset/blockSize); block*blockSize < r.End(); block++ {
			binary.BigEndian.PutUint32(table[block*4:], uint32(next))
			blocks, last = append(blocks, block), block
			next += 1 + blockSize/sector
		}
	}
	return table, blocks
}

// header is the dynamic disk's.
func header(entries int) []byte {
	be := binary.BigEndian
	b := make([]byte, headerSize)
	copy(b, "cxsparse")
	be.PutUint64(b[8:], nowhere)
	be.PutUint64(b[16:], tableAt)
	be.PutUint32(b[24:], 0x10000)
	be.PutUint32(b[28:], uint32(entries))
	be.PutUint32(b[32:], blockSize)
	be.PutUint32(b[36:], checksum(b))
	return b
}

// fill reads what a block has into buffer, after the bitmap, and returns the
// ranges that go on after it.
func fill(buffer []byte, block int64, ranges []Range, data io.ReaderAt) ([]Range, error) {
	from := block * blockSize
	bitmap, contents := buffer[:sector], buffer[sector:]
	for len(ranges) > 0 && ranges[0].Offset < from+blockSize {
		r := ranges[0]
		start, end := max(r.Offset, from)-from, min(r.End()-from, blockSize)
		if n, err := data.ReadAt(contents[start:end], from+start); n < int(end-start) {
			return nil, fmt.Errorf("vhd image: read %d bytes at %d: %w", end-start, from+start, errors.Join(err, io.ErrUnexpectedEOF))
		}
		for s := start / sector; s < end/sector; s++ {
			bitmap[s/8] |= 0x80 >> (s % 8)
		}
		if r.End() > from+blockSize {
			break
		}
		ranges = ranges[1:]
	}
	return ranges, nil
}
