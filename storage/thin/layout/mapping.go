// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/thin/extent"
)

// MappingRun says that Length blocks of a volume from block Virtual on are the
// data blocks from Physical on.
type MappingRun struct {
	Virtual, Physical, Length uint64
	// Base is the base that owns the data blocks, or 0 for blocks of the volume
	// alone.
	Base uint32
}

// Mapping is a thin volume while no host has it. It is as good as its generation:
// the map says which one counts.
type Mapping struct {
	Number    uint32
	BlockSize uint64 // bytes
	Size      uint64 // of the volume, bytes
	Runs      []MappingRun
}

// Private is the set of data blocks that are the volume's alone.
func (m Mapping) Private() extent.Set { return m.Of(0) }

// Of is the set of data blocks that the volume maps of one base.
func (m Mapping) Of(base uint32) extent.Set {
	var runs []extent.Extent
	for _, r := range m.Runs {
		if r.Base == base {
			runs = append(runs, extent.Extent{Start: r.Physical, Length: r.Length})
		}
	}
	return extent.Of(runs...)
}

// Blocks counts the blocks that are mapped.
func (m Mapping) Blocks() uint64 {
	var n uint64
	for _, r := range m.Runs {
		n += r.Length
	}
	return n
}

// Check says which rule a mapping breaks: runs ascend by virtual block within the
// volume, and no data block is mapped twice.
func (m Mapping) Check() error {
	if m.Number == 0 || m.Number > MaxVolume {
		return fmt.Errorf("volume number %d, the highest is %d", m.Number, MaxVolume)
	}
	if m.BlockSize < MinBlockSize || m.BlockSize > MaxBlockSize || m.BlockSize%MinBlockSize != 0 || m.Size == 0 || m.Size%sector != 0 || m.Size > 1<<63-1 {
		return fmt.Errorf("volume %d of %d bytes in blocks of %d", m.Number, m.Size, m.BlockSize)
	}
	blocks := (m.Size-1)/m.BlockSize + 1
	var at, mapped uint64
	var physical []extent.Extent
	for _, r := range m.Runs {
		data := extent.Extent{Start: r.Physical, Length: r.Length}
		if r.Virtual < at || !(extent.Extent{Start: r.Virtual, Length: r.Length}).Fits(blocks) || !data.Fits(maxBlocks) || data.Start < LabelBlock.End() {
			return fmt.Errorf("volume %d: blocks %d+%d at %d after block %d of %d", m.Number, r.Virtual, r.Length, r.Physical, at, blocks)
		}
		at, mapped = r.Virtual+r.Length, mapped+r.Length
		physical = append(physical, data)
	}
	if twice := mapped - extent.Of(physical...).Blocks(); twice != 0 {
		return fmt.Errorf("volume %d maps %d data blocks twice", m.Number, twice)
	}
	return nil
}

// mapping is where it lies: the whole of its volume.
func mapping(dev Device, cluster, volume uuid.UUID) sealed {
	return sealed{dev, place{dev.Name(), KindVolume, cluster, volume}, 0, dev.Size() &^ (block - 1)}
}

// CreateMapping writes the first mapping of a volume, generation 1, onto an empty
// volume.
func CreateMapping(dev Device, cluster, volume uuid.UUID, epoch uint64, m Mapping) error {
	s := mapping(dev, cluster, volume)
	if err := m.Check(); err != nil {
		return s.place.refuse(ErrInvalid, "%w", err)
	}
	return s.create(Stamp{epoch, 1}, m.encode())
}

// ReadMapping returns the mapping of a generation, which the map names. A later
// one that nobody committed to does not count.
func ReadMapping(dev Device, cluster, volume uuid.UUID, generation uint64) (Mapping, error) {
	s := mapping(dev, cluster, volume)
	contents, stamp, err := s.readGeneration(generation)
	if err != nil {
		return Mapping{}, err
	}
	m, err := decodeMapping(contents)
	if err != nil {
		return Mapping{}, s.place.refuse(ErrInvalid, "%v: %w", stamp, err)
	}
	return m, nil
}

// WriteMapping writes the mapping of generation next beside the one of
// generation keep, which stays. It counts from when the map names it; until then
// it may be written again. An epoch older than the disk's is ErrStale.
func WriteMapping(dev Device, cluster, volume uuid.UUID, keep, next, epoch uint64, m Mapping) error {
	s := mapping(dev, cluster, volume)
	err := m.Check()
	if err == nil && next <= keep {
		err = fmt.Errorf("generation %d cannot follow %d", next, keep)
	}
	if err != nil {
		return s.place.refuse(ErrInvalid, "%w", err)
	}
	return s.replace(keep, Stamp{epoch, next}, m.encode())
}

// runBytes is the length of a run's record.
const runBytes = 24

// encode is the contents: u32 number, u64 block size, u64 size, u32 bases, u32
// count of runs, and for each u64 virtual block, u64 data block, u32 length, u32
// base: 0, or the place from 1 on in the list of bases. A run of more than
// 2^32-1 blocks is several.
func (m Mapping) encode() []byte {
	var e encoder
	e.u32(m.Number)
	e.u64(m.BlockSize)
	e.u64(m.Size)
	index, bases := map[uint32]uint32{0: 0}, []uint32{}
	var runs encoder
	var count uint32
	for _, r := range m.Runs {
		if _, ok := index[r.Base]; !ok {
			bases = append(bases, r.Base)
			index[r.Base] = uint32(len(bases))
		}
		for r.Length > 0 {
			part := min(r.Length, 1<<32-1)
			runs.u64(r.Virtual)
			runs.u64(r.Physical)
			runs.u32(uint32(part))
			runs.u32(index[r.Base])
			r.Virtual, r.Physical, r.Length = r.Virtual+part, r.Physical+part, r.Length-part
			count++
		}
	}
	e.u32s(bases)
	e.u32(count)
	return append(e.b, runs.b...)
}

// Length is how long it is in UUID.thin, in bytes. Beside the one that counts there
// is room for it if the volume is longer by so much than it was when that was
// written.
func (m Mapping) Length() uint64 { return uint64(roundUp(int64(len(m.encode())))) }

func decodeMapping(b []byte) (Mapping, error) {
	d := decoder{b: b}
	m := Mapping{Number: d.u32(), BlockSize: d.u64(), Size: d.u64()}
	bases := append([]uint32{0}, d.u32s()...)
	n := d.count(runBytes)
	m.Runs = make([]MappingRun, 0, n)
	for range n {
		r := MappingRun{Virtual: d.u64(), Physical: d.u64(), Length: uint64(d.u32())}
		base := d.u32()
		if uint64(base) >= uint64(len(bases)) {
			return Mapping{}, fmt.Errorf("blocks %d+%d are of base %d of %d", r.Virtual, r.Length, base, len(bases)-1)
		}
		r.Base = bases[base]
		m.Runs = append(m.Runs, r)
	}
	if !d.whole() {
		return Mapping{}, fmt.Errorf("%d bytes are cut off or too many", len(b))
	}
	return m, m.Check()
}
