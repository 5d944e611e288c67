// SPDX-License-Identifier: Apache-2.0

package metadata

import "encoding/binary"

// Superblock is what the metadata says of the pool as a whole.
type Superblock struct {
	Time          uint32 // of the last snapshot; no mapping or device is younger
	TransactionID uint64
	NeedsCheck    bool   // the kernel found an error and wants thin_check
	DataBlockSize uint32 // sectors of 512 bytes
	DataBlocks    uint64

	// What a Builder finds out by itself.
	DataUsed       uint64 // data blocks that are mapped
	MetadataBlocks uint64 // 4 KiB each
	MetadataUsed   uint64
	HeldRoot       uint64 // block of the metadata snapshot's superblock; 0: there is none
}

// Where the superblock's fields are.
const (
	atFlags           = 4
	atMagic           = 32
	atVersion         = 40
	atTime            = 44
	atTransaction     = 48
	atHeldRoot        = 56
	atDataMap         = 64
	atMetadataMap     = 192
	atMappingRoot     = 320
	atDetailsRoot     = 328
	atDataBlockSize   = 336
	atMetadataSectors = 340
	atMetadataBlocks  = 344
	atIncompatible    = 360

	magic          = 27022010
	version        = 2
	flagNeedsCheck = 1
)

// spaceMapRoot is where a space map begins.
type spaceMapRoot struct {
	blocks, allocated uint64
	bitmaps           uint64 // block of the index of bitmaps: a tree for data, a single block for metadata
	refcounts         uint64 // block of the tree of counts that two bits do not hold
}

type roots struct {
	mappings, details  uint64
	data, metadataMaps spaceMapRoot
}

// decodeSuperblock takes apart b, which is block number of the image. The held
// root's copy has no space maps.
func decodeSuperblock(b []byte, number uint64) (Superblock, roots, error) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	spaceMap := func(at int) spaceMapRoot { return spaceMapRoot{u64(at), u64(at + 8), u64(at + 16), u64(at + 24)} }
	sb := Superblock{
		Time: u32(atTime), TransactionID: u64(atTransaction), NeedsCheck: u32(atFlags)&flagNeedsCheck != 0,
		DataBlockSize: u32(atDataBlockSize), HeldRoot: u64(atHeldRoot),
	}
	at := roots{u64(atMappingRoot), u64(atDetailsRoot), spaceMap(atDataMap), spaceMap(atMetadataMap)}
	sb.DataBlocks, sb.DataUsed = at.data.blocks, at.data.allocated
	sb.MetadataBlocks, sb.MetadataUsed = at.metadataMaps.blocks, at.metadataMaps.allocated
	if u64(atMagic) != magic {
		return sb, at, damaged("block %d: no superblock of a thin pool", number)
	}
	if err := verify(b, number, superblock); err != nil {
		return sb, at, err
	}
	switch {
	case u32(atVersion) != version:
		return sb, at, damaged("block %d: superblock of version %d", number, u32(atVersion))
	case u32(atIncompatible) != 0:
		return sb, at, damaged("block %d: superblock with unknown features %#x", number, u32(atIncompatible))
	case u32(atMetadataSectors) != BlockSize/512:
		return sb, at, damaged("block %d: metadata blocks of %d sectors", number, u32(atMetadataSectors))
	case !validDataBlockSize(sb.DataBlockSize):
		return sb, at, damaged("block %d: data blocks of %d sectors", number, sb.DataBlockSize)
	case sb.MetadataBlocks > MaxBlocks:
		return sb, at, damaged("block %d: %d metadata blocks", number, sb.MetadataBlocks)
	case bitmapsFor(sb.DataBlocks) > sb.MetadataBlocks: // nobody needs memory for more
		return sb, at, damaged("block %d: %d data blocks, whose bitmaps do not fit into %d", number, sb.DataBlocks, sb.MetadataBlocks)
	}
	return sb, at, nil
}

// encode makes b the superblock.
func (sb Superblock) encode(b []byte, at roots) {
	clear(b)
	u32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	u64 := func(at int, v uint64) { binary.LittleEndian.PutUint64(b[at:], v) }
	if sb.NeedsCheck {
		u32(atFlags, flagNeedsCheck)
	}
	u64(atMagic, magic)
	u32(atVersion, version)
	u32(atTime, sb.Time)
	u64(atTransaction, sb.TransactionID)
	u64(atHeldRoot, sb.HeldRoot)
	for offset, m := range map[int]spaceMapRoot{atDataMap: at.data, atMetadataMap: at.metadataMaps} {
		u64(offset, m.blocks)
		u64(offset+8, m.allocated)
		u64(offset+16, m.bitmaps)
		u64(offset+24, m.refcounts)
	}
	u64(atMappingRoot, at.mappings)
	u64(atDetailsRoot, at.details)
	u32(atDataBlockSize, sb.DataBlockSize)
	u32(atMetadataSectors, BlockSize/512)
	u64(atMetadataBlocks, at.metadataMaps.blocks)
	seal(b, 0, superblock)
}

// validDataBlockSize is the kernel's rule: a multiple of 64 KiB up to 1 GiB.
func validDataBlockSize(sectors uint32) bool {
	return sectors >= minDataBlockSize && sectors <= maxDataBlockSize && sectors%minDataBlockSize == 0
}
