// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"diskhook/storage/directio"
)

// kind is the salt that a block's checksum is mixed with, so that a block of
// one kind is never taken for another.
type kind uint32

const (
	superblock kind = 160774
	btreeNode  kind = 121107
	bitmap     kind = 240779
	bitmapList kind = 160478 // the metadata space map's index
)

func (k kind) String() string {
	switch k {
	case superblock:
		return "superblock"
	case btreeNode:
		return "btree node"
	case bitmap:
		return "bitmap"
	default:
		return "space map index"
	}
}

// Every kind of block begins with its checksum and has its own number at the
// same place.
const numberAt = 8

// seal makes b the block number of its kind.
func seal(b []byte, number uint64, k kind) {
	binary.LittleEndian.PutUint64(b[numberAt:], number)
	binary.LittleEndian.PutUint32(b, checksum(b, k))
}

// checksum is CRC-32C without the final inversion, which Go's has.
func checksum(b []byte, k kind) uint32 {
	return ^crc32.Checksum(b[4:BlockSize], crc32.MakeTable(crc32.Castagnoli)) ^ uint32(k)
}

func verify(b []byte, number uint64, k kind) error {
	if got, want := binary.LittleEndian.Uint32(b), checksum(b, k); got != want {
		return damaged("block %d: not a %s: checksum %08x, content says %08x", number, k, got, want)
	}
	if got := binary.LittleEndian.Uint64(b[numberAt:]); got != number {
		return damaged("block %d: a %s that says it is block %d", number, k, got)
	}
	return nil
}

// source is the blocks of an image.
type source struct {
	r      io.ReaderAt
	blocks uint64 // that pointers may name
}

// read fills b, which is one or more blocks, from the block first on. It checks
// nothing but that first may be read.
func (s *source) read(b []byte, first uint64) error {
	if first >= s.blocks {
		return damaged("block %d of %d is referred to", first, s.blocks)
	}
	n, err := s.r.ReadAt(b, int64(first)*BlockSize)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return damaged("the image ends before block %d", first+uint64(n/BlockSize))
	}
	return fmt.Errorf("metadata block %d: %w", first, err)
}

// block reads one block of kind k into b.
func (s *source) block(b []byte, number uint64, k kind) error {
	if err := s.read(b, number); err != nil {
		return err
	}
	return verify(b, number, k)
}

// aligned makes n blocks of memory that direct I/O takes.
func aligned(n int) []byte { return directio.Buffer(int64(n) * BlockSize) }
