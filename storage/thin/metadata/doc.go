// SPDX-License-Identifier: Apache-2.0

// Package metadata reads, writes and checks the metadata of a dm-thin pool:
// which data block backs which block of which thin device.
//
// The kernel's format (drivers/md/dm-thin-metadata.c and
// drivers/md/persistent-data) is a file of 4 KiB blocks, each with a CRC-32C
// of its own: a superblock, a tree of trees that maps (device, virtual block)
// to (data block, time), a tree of device details, and for the data and for
// the metadata device a space map, which counts the references to each block.
//
// Open gives a Reader; NewBuilder writes a whole new image from a sorted
// stream. Nothing here changes an image in place: whoever wants another
// mapping builds a new image elsewhere and switches, so there is no half-done
// change to recover from. XMLWriter and ReadXML speak what thin_dump and
// thin_restore speak. Check looks at everything there is.
//
// Memory does not grow with the number of mappings. The Builder and Check hold
// a quarter of a byte for each data block that is mapped at all, and four
// bytes where one in 16320 is mapped more than twice.
//
// Images are hostile: each pointer, count and key is checked before it is
// followed, trees are bounded in depth and their keys have to ascend, so a loop
// ends in ErrDamaged and never in a hang.
//
// Devices come in ascending order, but for those that Builder.Ahead begins. So a
// caller that changes the metadata of a pool can write what no guest changes, disk 0
// and the volumes that are new to the pool, before it suspends anything, and the
// rest while guests wait. What guests may change can be written before as well, and
// taken back by Builder.Drop where they did: Reader.MappingRoots tells.
//
// The metadata of a live pool may only be read through its metadata snapshot
// (Reader.Snapshot) and past the page cache (layout.Open): the kernel writes
// below it. Metadata that a pool uses must never be written.
package metadata

import (
	"errors"
	"fmt"

	"diskhook/storage/failure"
)

// BlockSize is the size of a metadata block in bytes.
const BlockSize = 4096

// What fits into the format, and what the kernel takes.
const (
	MaxBlocks     = 255 * entriesPerBitmap // metadata blocks that are used; the rest of a larger device is not
	MaxDataBlocks = 1<<40 - 1
	MaxDevices    = 1 << 24 // device ids are below
	MaxTime       = 1<<24 - 1

	minDataBlockSize = 128     // sectors: 64 KiB
	maxDataBlockSize = 2097152 // sectors: 1 GiB
)

// ErrDamaged says that an image, or an XML description, contradicts itself or
// is no pool at all. It is a failure.Precondition.
var ErrDamaged = failure.Wrap(failure.Precondition, errors.New("damaged metadata"))

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Device is a thin device of the pool. Its size is not part of the metadata.
type Device struct {
	ID           uint32 // below MaxDevices
	MappedBlocks uint64 // counted by the Builder, which does not read it
	Transaction  uint64 // the pool's when it was created
	CreationTime uint32
	SnapTime     uint32 // mappings older than this are copied before a write
}

// Run is a row of Length blocks of a device, from Origin on, that lie in the
// data blocks from Data on and were all mapped at Time.
type Run struct {
	Origin, Data, Length uint64
	Time                 uint32 // at most MaxTime
}

// Sink takes a pool as a stream: each device in ascending order of ids,
// followed by its runs in ascending order of origins, then Finish. After an
// error it is of no use any more.
type Sink interface {
	Device(Device) error
	Map(Run) error
	Finish() error
}
