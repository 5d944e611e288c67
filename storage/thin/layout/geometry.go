// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"math/bits"

	"github.com/google/uuid"

	"diskhook/storage/thin/extent"
)

// Limits of dm-thin (Documentation/admin-guide/device-mapper/thin-provisioning.rst
// and drivers/md/dm-thin.c).
const (
	MinBlockSize = 64 << 10 // bytes; block sizes are multiples of it
	MaxBlockSize = 1 << 30  // bytes
	maxBlocks    = 1 << 40  // a mapping has 40 bits for a data block
)

// Geometry is the data area's: what every host's pool must agree on.
type Geometry struct {
	BlockSize uint64 // bytes
	Blocks    uint64 // N: how many data blocks there are
}

// Bytes is the length of the data area.
func (g Geometry) Bytes() uint64 { return g.BlockSize * g.Blocks }

func (g Geometry) check() error {
	over, bytes := bits.Mul64(g.BlockSize, g.Blocks)
	if g.BlockSize < MinBlockSize || g.BlockSize > MaxBlockSize || g.BlockSize%MinBlockSize != 0 || g.Blocks < 2 || g.Blocks >= maxBlocks ||
		over != 0 || bytes > 1<<63-1 {
		return fmt.Errorf("%d data blocks of %d bytes", g.Blocks, g.BlockSize)
	}
	return nil
}

// GeometryFor is the geometry of a data volume of so many bytes. blockSize 0
// chooses the smallest power of two that leaves at most 16 M blocks, which keeps
// the metadata of each host, disk 0 in it, below about 600 MiB.
func GeometryFor(bytes, blockSize uint64) (Geometry, error) {
	if blockSize == 0 {
		for blockSize = MinBlockSize; bytes/blockSize > 16<<20 && blockSize < MaxBlockSize; blockSize *= 2 {
		}
	}
	g := Geometry{BlockSize: blockSize}
	if blockSize > 0 {
		g.Blocks = bytes / blockSize
	}
	if err := g.check(); err != nil {
		return Geometry{}, fmt.Errorf("a data volume of %d bytes: %w", bytes, err)
	}
	return g, nil
}

func (g Geometry) encode(e *encoder) { e.u64(g.BlockSize); e.u64(g.Blocks) }

func decodeGeometry(d *decoder) Geometry { return Geometry{BlockSize: d.u64(), Blocks: d.u64()} }

// LabelBlock is the data block that carries the label; nobody owns it but the
// label, so that a pool never hands it out.
var LabelBlock = extent.Extent{Start: 0, Length: 1}

// label is where it lies: within the smallest data block there can be.
func label(dev Device, cluster uuid.UUID) sealed {
	return sealed{dev, place{dev.Name(), KindLabel, cluster, uuid.Nil}, 0, MinBlockSize}
}

// CreateLabel marks an empty data volume as this cluster's.
func CreateLabel(dev Device, cluster uuid.UUID, epoch uint64, g Geometry) error {
	if err := g.check(); err != nil {
		return label(dev, cluster).place.refuse(ErrInvalid, "%w", err)
	}
	var e encoder
	g.encode(&e)
	return label(dev, cluster).create(Stamp{epoch, 1}, e.b)
}

// GrowLabel writes the geometry of a data volume that was extended. The label
// changes last, after every host's metadata withholds the new blocks.
func GrowLabel(dev Device, cluster uuid.UUID, epoch uint64, g Geometry) error {
	old, stamp, err := readLabel(dev, cluster)
	if err != nil || old == g {
		return err
	}
	s := label(dev, cluster)
	if g.BlockSize != old.BlockSize || g.Blocks < old.Blocks || g.check() != nil {
		return s.place.refuse(ErrInvalid, "%d blocks of %d bytes cannot become %d of %d", old.Blocks, old.BlockSize, g.Blocks, g.BlockSize)
	}
	var e encoder
	g.encode(&e)
	return s.follow(stamp, Stamp{epoch, stamp.Generation + 1}, e.b)
}

// ReadLabel checks that a data volume is this cluster's and has its size: one
// that has grown by a data block or more is ErrGrown, and the geometry is
// returned all the same; one that has shrunk is ErrShrunk.
func ReadLabel(dev Device, cluster uuid.UUID) (Geometry, error) {
	g, _, err := readLabel(dev, cluster)
	if err != nil {
		return Geometry{}, err
	}
	place := label(dev, cluster).place
	switch size := uint64(dev.Size()); {
	case size < g.Bytes():
		return g, place.refuse(ErrShrunk, "%d bytes, the cluster needs %d", size, g.Bytes())
	case size/g.BlockSize > g.Blocks:
		return g, place.refuse(ErrGrown, "%d data blocks, the cluster knows %d", size/g.BlockSize, g.Blocks)
	}
	return g, nil
}

func readLabel(dev Device, cluster uuid.UUID) (Geometry, Stamp, error) {
	s := label(dev, cluster)
	contents, stamp, err := s.readNewest()
	if err != nil {
		return Geometry{}, Stamp{}, err
	}
	d := decoder{b: contents}
	g := decodeGeometry(&d)
	if !d.whole() || g.check() != nil {
		return Geometry{}, Stamp{}, s.place.refuse(ErrInvalid, "%d bytes, %+v", len(contents), g)
	}
	return g, stamp, nil
}
