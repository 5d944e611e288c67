// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"

	"diskhook/storage/failure"
)

// Reader reads an image, or the metadata snapshot in it. Its methods are safe
// for concurrent use as far as the image's are.
type Reader struct {
	src source
	sb  Superblock
	at  roots
}

// Open reads the superblock. It does not look at needs_check: whoever wants to
// rely on the metadata does.
func Open(r io.ReaderAt) (*Reader, error) {
	reader := &Reader{src: source{r, 1}}
	b := aligned(1)
	if err := reader.src.read(b, 0); err != nil {
		return nil, err
	}
	var err error
	reader.sb, reader.at, err = decodeSuperblock(b, 0)
	reader.src.blocks = reader.sb.MetadataBlocks
	return reader, err
}

// Superblock is what the metadata says of the pool.
func (r *Reader) Superblock() Superblock { return r.sb }

// Snapshot gives a Reader of the metadata snapshot, the only part of a live
// pool's metadata that does not change under the reader. As the snapshot has no
// space maps, sizes are the pool's of now. Without a snapshot it is a
// failure.Precondition.
func (r *Reader) Snapshot() (*Reader, error) {
	if r.sb.HeldRoot == 0 {
		return nil, failure.Hint(failure.New(failure.Precondition, "the pool has no metadata snapshot"),
			"dmsetup message POOL 0 reserve_metadata_snap")
	}
	b := aligned(1)
	if err := r.src.read(b, r.sb.HeldRoot); err != nil {
		return nil, err
	}
	sb, at, err := decodeSuperblock(b, r.sb.HeldRoot)
	if err != nil {
		return nil, err
	}
	sb.HeldRoot = r.sb.HeldRoot
	sb.DataBlocks, sb.DataUsed = r.sb.DataBlocks, r.sb.DataUsed
	sb.MetadataBlocks, sb.MetadataUsed = r.sb.MetadataBlocks, r.sb.MetadataUsed
	at.data, at.metadataMaps = spaceMapRoot{}, spaceMapRoot{}
	return &Reader{r.src, sb, at}, nil
}

// Devices lists the devices in ascending order of ids. An error is the last
// thing that it yields.
func (r *Reader) Devices() iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		w := walker{src: &r.src, size: detailsSize, leaf: func(block uint64, n node) error {
			for i := range n.entries() {
				d, err := decodeDevice(block, n.key(i), n.value(i, detailsSize))
				if err != nil {
					return err
				}
				if !yield(d, nil) {
					return errStop
				}
			}
			return nil
		}}
		if _, err := w.walk(r.at.details); err != nil && !errors.Is(err, errStop) {
			yield(Device{}, err)
		}
	}
}

// Device gives one device; failure.NotFound says that there is none with this
// id.
func (r *Reader) Device(id uint32) (Device, error) {
	v, err := r.src.lookup(r.at.details, uint64(id), detailsSize)
	switch {
	case err != nil:
		return Device{}, err
	case v == nil:
		return Device{}, failure.New(failure.NotFound, "thin device %d: not in the metadata", id)
	}
	return decodeDevice(r.at.details, uint64(id), v)
}

// decodeDevice takes apart the value at key of the node at block.
func decodeDevice(block, key uint64, v []byte) (Device, error) {
	if key >= MaxDevices {
		return Device{}, damaged("block %d: device %d", block, key)
	}
	le := binary.LittleEndian
	return Device{uint32(key), le.Uint64(v), le.Uint64(v[8:]), le.Uint32(v[16:]), le.Uint32(v[20:])}, nil
}

// Mappings lists what a device maps, in ascending order of origins and in runs
// as long as can be. An error is the last thing that it yields;
// failure.NotFound says that there is no such device.
func (r *Reader) Mappings(id uint32) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		root, err := r.mappingRoot(id)
		if err == nil {
			err = r.runs(root, yield)
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(Run{}, err)
		}
	}
}

// MappingRoots are the roots of the trees of mappings, by device. In a metadata
// snapshot, a device that has the root that it has in one reserved later maps the same,
// if nothing changed between the release of the one and the reservation of the other:
// as long as a snapshot holds a tree, whatever changes it writes another one, from the
// root on, elsewhere. Of a snapshot that was released before, a root may have been used
// again.
func (r *Reader) MappingRoots() (map[uint32]uint64, error) {
	roots := map[uint32]uint64{}
	w := walker{src: &r.src, size: mappingSize, leaf: func(block uint64, n node) error {
		for i := range n.entries() {
			if n.key(i) >= MaxDevices {
				return damaged("block %d: device %d", block, n.key(i))
			}
			roots[uint32(n.key(i))] = binary.LittleEndian.Uint64(n.value(i, mappingSize))
		}
		return nil
	}}
	_, err := w.walk(r.at.mappings)
	return roots, err
}

func (r *Reader) mappingRoot(id uint32) (uint64, error) {
	v, err := r.src.lookup(r.at.mappings, uint64(id), mappingSize)
	switch {
	case err != nil:
		return 0, err
	case v != nil:
		return binary.LittleEndian.Uint64(v), nil
	}
	if _, err := r.Device(id); err != nil {
		return 0, err
	}
	return 0, damaged("block %d: thin device %d: details, but no mappings", r.at.mappings, id)
}

func (r *Reader) runs(root uint64, yield func(Run, error) bool) error {
	var held Run
	emit := func(block uint64, run Run) error {
		if run.Data+run.Length > r.sb.DataBlocks {
			return damaged("block %d: virtual block %d is in data block %d of %d",
				block, run.Origin, run.Data, r.sb.DataBlocks)
		}
		if !yield(run, nil) {
			return errStop
		}
		return nil
	}
	w := walker{src: &r.src, size: mappingSize, leaf: func(block uint64, n node) (err error) {
		held, err = n.runs(held, func(run Run) error { return emit(block, run) })
		return err
	}}
	if _, err := w.walk(root); err != nil || held.Length == 0 {
		return err
	}
	return emit(root, held)
}

// runs gives the runs of a leaf of mappings to emit, joined with the one that
// is held from the leaf before. The last is not given, but returned.
func (n node) runs(held Run, emit func(Run) error) (Run, error) {
	entries := n.entries()
	keys, values := n[nodeHeader:nodeHeader+8*entries], n[nodeHeader+8*n.room():]
	nextKey, nextValue := held.Origin+held.Length, pack(held.Data+held.Length, held.Time)
	for i := 0; i < 8*entries; i += 8 {
		key, value := binary.LittleEndian.Uint64(keys[i:]), binary.LittleEndian.Uint64(values[i:])
		if key != nextKey || value != nextValue || held.Length == 0 {
			if held.Length > 0 {
				held.Length = nextKey - held.Origin
				if err := emit(held); err != nil {
					return held, err
				}
			}
			held = Run{Origin: key, Data: value >> 24, Length: 1, Time: uint32(value & MaxTime)}
		}
		nextKey, nextValue = key+1, value+1<<24
	}
	held.Length = nextKey - held.Origin
	return held, nil
}

// pack is a mapping as it is stored: 40 bits of data block, 24 bits of time.
func pack(data uint64, time uint32) uint64 { return data<<24 | uint64(time) }

// Stream gives the pool, or only the devices with these ids, to sink. Finish is
// left to the caller, who may have more to add. It looks at ctx between runs.
func (r *Reader) Stream(ctx context.Context, sink Sink, only ...uint32) error {
	for d, err := range r.chosen(only) {
		if err != nil {
			return err
		}
		if err := sink.Device(d); err != nil {
			return err
		}
		for run, err := range r.Mappings(d.ID) {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = sink.Map(run)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// chosen lists the devices with these ids, all if there are none.
func (r *Reader) chosen(ids []uint32) iter.Seq2[Device, error] {
	if len(ids) == 0 {
		return r.Devices()
	}
	return func(yield func(Device, error) bool) {
		for _, id := range ids {
			if d, err := r.Device(id); !yield(d, err) || err != nil {
				return
			}
		}
	}
}
