// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"

	"diskhook/storage/failure"
)

// Builder is a Sink that writes a whole new image, in which all trees are
// packed and nothing else is left.
//
// The superblock is written last, after everything else is durable. Until then
// block 0 says that this is no pool, for the kernel takes a metadata device that
// begins with 4 KiB of zeros for a new one and would make each data block free.
type Builder struct {
	out      *output
	sb       Superblock
	data     counts
	details  *treeWriter
	devices  *treeWriter
	mappings *treeWriter

	current *Device // whose mappings are coming
	early   bool    // it was begun by Ahead
	first   uint64  // metadata block that its tree begins at or after
	next    uint64  // the first origin that may come next
	full    bool    // none may, all were there

	ahead []placed // written, and not in the tree of devices yet, by ascending ids
	least uint32   // the smallest id that the tree of devices still takes
}

// placed is a device whose mappings are written.
type placed struct {
	Device
	root uint64
	at   span // nothing else is there
}

// unfinished begins an image that has no superblock yet.
const unfinished = "diskhook: not all of this metadata has been written\n"

// NewBuilder begins an image on a device of that many blocks of BlockSize.
// Of sb it reads what comes before DataUsed. An image that does not fit is a
// failure.NoSpace, here or later; a bad superblock is failure.Usage.
func NewBuilder(to Target, blocks uint64, sb Superblock) (*Builder, error) {
	usable := min(blocks, MaxBlocks)
	switch {
	case !validDataBlockSize(sb.DataBlockSize):
		return nil, failure.New(failure.Usage, "data blocks of %d sectors: from %d to %d in steps of %d are possible",
			sb.DataBlockSize, minDataBlockSize, maxDataBlockSize, minDataBlockSize)
	case sb.DataBlocks > MaxDataBlocks:
		return nil, failure.New(failure.Usage, "%d data blocks: at most %d are possible", sb.DataBlocks, uint64(MaxDataBlocks))
	case bitmapsFor(sb.DataBlocks) >= usable: // before there is memory for them
		return nil, failure.New(failure.NoSpace, "%d metadata blocks are not enough for %d data blocks", blocks, sb.DataBlocks)
	}
	out := &output{to: to, limit: usable, next: 1, buf: aligned(chunk)}
	b := &Builder{
		out: out, sb: sb, data: newCounts(sb.DataBlocks),
		details: newTreeWriter(out, detailsSize), devices: newTreeWriter(out, mappingSize), mappings: newTreeWriter(out, mappingSize),
	}
	first := aligned(1)
	copy(first, unfinished)
	return b, b.writeFirst(first)
}

// writeFirst makes block 0 durable, which means nothing else may be in flight.
func (b *Builder) writeFirst(first []byte) error {
	if err := failure.Full(b.out.to.Flush()); err != nil {
		return err
	}
	if _, err := b.out.to.WriteAt(first, 0); err != nil {
		return failure.Full(fmt.Errorf("metadata superblock: %w", err))
	}
	return failure.Full(b.out.to.Flush())
}

// Device begins a device. Its id is greater than those of all that Device began before.
func (b *Builder) Device(d Device) error {
	if err := b.begin(d, false); err != nil {
		return err
	}
	return b.link(d.ID)
}

// Ahead begins a device that comes out of turn: Device may begin those with smaller ids
// afterwards. It keeps a few bytes of each until its turn.
func (b *Builder) Ahead(d Device) error { return b.begin(d, true) }

func (b *Builder) begin(d Device, early bool) error {
	if d.ID >= MaxDevices {
		return failure.New(failure.Usage, "thin device %d: ids are below %d", d.ID, MaxDevices)
	}
	if err := b.endDevice(); err != nil {
		return err
	}
	if d.ID < b.least {
		return failure.New(failure.Usage, "thin device %d comes after %d", d.ID, b.least-1)
	}
	if _, twice := b.find(d.ID); twice {
		return failure.New(failure.Usage, "thin device %d: it was written ahead of the others", d.ID)
	}
	d.MappedBlocks = 0
	b.current, b.early, b.first, b.next, b.full = &d, early, b.out.next, 0, false
	return nil
}

func (b *Builder) find(id uint32) (int, bool) {
	return slices.BinarySearchFunc(b.ahead, id, func(p placed, id uint32) int { return cmp.Compare(p.ID, id) })
}

// Map adds a run to the device that Device began. Runs ascend and do not
// overlap; what they map to may be mapped elsewhere as well.
func (b *Builder) Map(run Run) error {
	d := b.current
	switch {
	case d == nil:
		return failure.New(failure.Usage, "virtual block %d: of no thin device", run.Origin)
	case run.Length == 0 || run.Length-1 > math.MaxUint64-run.Origin:
		return failure.New(failure.Usage, "thin device %d: %d blocks from virtual block %d on", d.ID, run.Length, run.Origin)
	case b.full || run.Origin < b.next:
		return failure.New(failure.Usage, "thin device %d: virtual block %d comes after others that follow it", d.ID, run.Origin)
	case run.Length > b.sb.DataBlocks || run.Data > b.sb.DataBlocks-run.Length:
		return failure.New(failure.Usage, "thin device %d: virtual block %d: data blocks %d and %d that follow, where there are %d",
			d.ID, run.Origin, run.Data, run.Length-1, b.sb.DataBlocks)
	case run.Time > MaxTime:
		return failure.New(failure.Usage, "thin device %d: virtual block %d: time %d does not fit into 24 bits", d.ID, run.Origin, run.Time)
	}
	b.next = run.Origin + run.Length
	b.full = b.next == 0
	d.MappedBlocks += run.Length
	b.data.add(run.Data, run.Length)
	return b.mappings.addRun(run.Origin, pack(run.Data, run.Time), run.Length, 1<<24)
}

// endDevice writes what is left of the device that is coming.
func (b *Builder) endDevice() error {
	if b.current == nil {
		return nil
	}
	d := placed{Device: *b.current}
	b.current = nil
	var err error
	if d.root, err = b.mappings.finish(); err != nil {
		return err
	}
	d.at = span{b.first, b.out.next}
	if b.early {
		i, _ := b.find(d.ID)
		b.ahead = slices.Insert(b.ahead, i, d)
		return nil
	}
	return b.enter(d)
}

// link enters the devices that came ahead of this one.
func (b *Builder) link(before uint32) error {
	n, _ := b.find(before)
	for _, d := range b.ahead[:n] {
		if err := b.enter(d); err != nil {
			return err
		}
	}
	b.ahead = slices.Delete(b.ahead, 0, n)
	return nil
}

// enter has the trees of devices and of their details know one that is written.
func (b *Builder) enter(d placed) error {
	if err := b.devices.addRun(uint64(d.ID), d.root, 1, 0); err != nil {
		return err
	}
	v, err := b.details.add(uint64(d.ID))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	le.PutUint64(v, d.MappedBlocks)
	le.PutUint64(v[8:], d.Transaction)
	le.PutUint32(v[16:], d.CreationTime)
	le.PutUint32(v[20:], d.SnapTime)
	b.least = d.ID + 1
	return nil
}

// Written ends the device that is coming, and reads back from the image what is mapped
// by one that Ahead began, once that is durable. Nothing but Device, Ahead, Drop and
// Finish may follow.
func (b *Builder) Written(from io.ReaderAt, id uint32) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		root, err := b.settled(id)
		if err == nil {
			r := &Reader{src: source{from, b.out.next}, sb: b.sb}
			err = r.runs(root, yield)
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(Run{}, err)
		}
	}
}

// Drop takes back a device that Ahead began, which has not had its turn: another one
// may be begun with its id. What it maps is read from the image. After an error the
// Builder is of no use any more.
func (b *Builder) Drop(from io.ReaderAt, id uint32) error {
	root, err := b.settled(id)
	if err != nil {
		return err
	}
	i, _ := b.find(id)
	d, blocks := b.ahead[i], uint64(0)
	r := &Reader{src: source{from, b.out.next}, sb: b.sb}
	err = r.runs(root, func(run Run, _ error) bool {
		blocks += run.Length
		return b.data.remove(run.Data, run.Length)
	})
	if errors.Is(err, errStop) || err == nil && blocks != d.MappedBlocks {
		err = damaged("block %d: thin device %d: read back otherwise than it was written", root, id)
	}
	if err != nil {
		return err
	}
	b.out.given = append(b.out.given, d.at)
	b.ahead = slices.Delete(b.ahead, i, i+1)
	return nil
}

func (b *Builder) settled(id uint32) (root uint64, err error) {
	if err := b.endDevice(); err != nil {
		return 0, err
	}
	i, ok := b.find(id)
	if !ok {
		return 0, failure.New(failure.NotFound, "thin device %d: it was not written ahead of the others", id)
	}
	if err := b.out.flush(); err != nil {
		return 0, err
	}
	return b.ahead[i].root, failure.Full(b.out.to.Flush())
}

// Finish writes the rest. The image is durable and a pool when it returns nil,
// and not before.
func (b *Builder) Finish() error {
	if err := b.endDevice(); err != nil {
		return err
	}
	if err := b.link(MaxDevices); err != nil {
		return err
	}
	var at roots
	var err error
	if at.details, err = b.details.finish(); err != nil {
		return err
	}
	if at.mappings, err = b.devices.finish(); err != nil {
		return err
	}
	if at.data, err = b.out.dataMap(&b.data); err != nil {
		return err
	}
	if at.metadataMaps, err = b.out.metadataMap(); err != nil {
		return err
	}
	if err := b.out.flush(); err != nil {
		return err
	}
	b.sb.DataUsed = at.data.allocated
	b.sb.MetadataBlocks, b.sb.MetadataUsed = at.metadataMaps.blocks, at.metadataMaps.allocated
	b.sb.HeldRoot = 0
	first := aligned(1)
	b.sb.encode(first, at)
	return b.writeFirst(first)
}

// Superblock is what Finish wrote.
func (b *Builder) Superblock() Superblock { return b.sb }
