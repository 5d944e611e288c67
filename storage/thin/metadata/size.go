// SPDX-License-Identifier: Apache-2.0

package metadata

// Content is what decides how large the metadata of a pool is.
type Content struct {
	DataBlocks, Devices uint64
	Mappings            uint64 // of all devices together
	Often               uint64 // data blocks that are mapped more than twice
}

// PackedBlocks is how many blocks of BlockSize an image of the Builder has at
// most. A kernel that goes on from there splits nodes, and copies before it
// writes: give it three times as much.
func (c Content) PackedBlocks() uint64 {
	// Each device has a node that is not full, and if that is not its only one,
	// nodes above that are not full either.
	deep := min(c.Devices, c.Mappings/uint64(maxEntries(mappingSize)))
	n := 1 + treeBlocks(c.Mappings, mappingSize) + c.Devices + 4*deep
	n += treeBlocks(c.Devices, mappingSize) + treeBlocks(c.Devices, detailsSize)
	bitmaps := bitmapsFor(c.DataBlocks)
	n += bitmaps + treeBlocks(bitmaps, bitmapSize)
	n += treeBlocks(c.Often, refcountSize)
	// The metadata's own space map: its bitmaps, their list, an empty tree.
	return n + 2 + bitmapsFor(n+bitmapsFor(n)+2)
}

// treeBlocks is how many nodes a packed tree of so many entries has.
func treeBlocks(entries uint64, valueSize int) uint64 {
	room := uint64(maxEntries(valueSize))
	level := max(1, (entries+room-1)/room)
	n := level
	for level > 1 {
		room = uint64(maxEntries(childSize))
		level = (level + room - 1) / room
		n += level
	}
	return n
}
