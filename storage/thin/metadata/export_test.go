// SPDX-License-Identifier: Apache-2.0

package metadata

// Seal gives a block that a test has changed the checksum of its kind again; a
// kind's salt is what it is known by.
func Seal(b []byte, number uint64, salt uint32) { seal(b, number, kind(salt)) }

// Salts of the kinds of blocks.
const (
	SuperblockSalt = uint32(superblock)
	NodeSalt       = uint32(btreeNode)
	BitmapSalt     = uint32(bitmap)
	ListSalt       = uint32(bitmapList)
)
