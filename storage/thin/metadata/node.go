// SPDX-License-Identifier: Apache-2.0

package metadata

import "encoding/binary"

// node is a block of a btree: a header, room for a number of keys, and room
// for as many values. Keys ascend. The values of an internal node are the
// blocks of its children, and the key beside a child is at most the child's
// first.
type node []byte

// Where a node's fields are.
const (
	atNodeFlags  = 4
	atEntries    = 16
	atMaxEntries = 20
	atValueSize  = 24
	nodeHeader   = 32

	flagInternal = 1
	flagLeaf     = 2
)

// Sizes of the values in leaves.
const (
	mappingSize  = 8 // data block and time; in the tree of devices, a root
	detailsSize  = 24
	bitmapSize   = 16 // the index of bitmaps
	refcountSize = 4
	childSize    = 8
)

// maxEntries is how many entries the kernel puts into a node. It is a multiple
// of three, since nodes are merged and split by thirds.
func maxEntries(valueSize int) int { return (BlockSize - nodeHeader) / (8 + valueSize) / 3 * 3 }

func (n node) u32(at int) uint32 { return binary.LittleEndian.Uint32(n[at:]) }
func (n node) internal() bool    { return n.u32(atNodeFlags) == flagInternal }
func (n node) entries() int      { return int(n.u32(atEntries)) }
func (n node) room() int         { return int(n.u32(atMaxEntries)) }
func (n node) key(i int) uint64  { return binary.LittleEndian.Uint64(n[nodeHeader+8*i:]) }

// value is the i-th value, of size bytes.
func (n node) value(i, size int) []byte {
	at := nodeHeader + 8*n.room() + size*i
	return n[at : at+size : at+size]
}

func (n node) child(i int) uint64 { return binary.LittleEndian.Uint64(n.value(i, childSize)) }

// last is the greatest key; the node is not empty.
func (n node) last() uint64 { return n.key(n.entries() - 1) }

// validate looks at everything that the other methods rely on, in a tree whose
// leaves have values of size bytes: the header, and keys that ascend from low
// to high at most.
func (n node) validate(block uint64, size int, low, high uint64) error {
	flags := n.u32(atNodeFlags)
	if flags == flagInternal {
		size = childSize
	}
	entries, room := uint64(n.u32(atEntries)), uint64(n.u32(atMaxEntries))
	switch {
	case flags != flagInternal && flags != flagLeaf:
		return damaged("block %d: btree node with flags %#x", block, flags)
	case n.u32(atValueSize) != uint32(size):
		return damaged("block %d: btree node with values of %d bytes, not %d", block, n.u32(atValueSize), size)
	case nodeHeader+room*uint64(8+size) > BlockSize || entries > room:
		return damaged("block %d: btree node with %d entries, room for %d", block, entries, room)
	case entries == 0 && flags == flagInternal:
		return damaged("block %d: btree node without children", block)
	case entries == 0:
		return nil
	case n.key(0) < low || n.last() > high:
		return damaged("block %d: keys %d to %d, where the node above has %d to %d", block, n.key(0), n.last(), low, high)
	}
	for i, keys := uint64(1), n[nodeHeader:]; i < entries; i++ {
		if binary.LittleEndian.Uint64(keys[8*i:]) <= binary.LittleEndian.Uint64(keys[8*i-8:]) {
			return damaged("block %d: key %d follows key %d", block, n.key(int(i)), n.key(int(i-1)))
		}
	}
	return nil
}
