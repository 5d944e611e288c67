// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

const (
	page   = 4096
	sector = 512
)

// Mapped is where a virtual block is, and since when.
type Mapped struct {
	Block uint64
	Time  uint32
}

// ThinImage is a thin device in metadata.
type ThinImage struct {
	Transaction            uint64
	CreationTime, SnapTime uint32
	Mappings               map[uint64]Mapped // by virtual block

	// Root is the block that the tree of mappings begins in. Of an image that a tool
	// writes it is chosen for it.
	Root uint64
}

// Image is what metadata say.
type Image struct {
	Time         uint32
	Transaction  uint64
	BlockSectors uint64
	Blocks       uint64 // how many data blocks there are
	NeedsCheck   bool
	Devices      map[uint32]ThinImage
}

// Clone is a copy that shares nothing.
func (i Image) Clone() Image {
	devices := map[uint32]ThinImage{}
	for id, d := range i.Devices {
		d.Mappings = maps.Clone(d.Mappings)
		devices[id] = d
	}
	i.Devices = devices
	return i
}

// plant gives trees that have no root one.
func (i Image) plant() {
	next := uint64(1)
	for _, id := range slices.Sorted(maps.Keys(i.Devices)) {
		d := i.Devices[id]
		d.Root, next = next, next+1
		i.Devices[id] = d
	}
}

// roots counts the devices whose trees begin in a block.
func (i Image) roots(block uint64) (n int) {
	for _, d := range i.Devices {
		if d.Root == block {
			n++
		}
	}
	return n
}

// allocated is every block that a device maps.
func (i Image) allocated() map[uint64]bool {
	blocks := map[uint64]bool{}
	for _, d := range i.Devices {
		for _, m := range d.Mappings {
			blocks[m.Block] = true
		}
	}
	return blocks
}

// SAN is shared storage: disks that survive a crash of the hosts.
type SAN struct {
	mu         sync.Mutex
	disks      []*disk
	violations []string
}

// disk has zeros where nothing was written, and metadata at some offsets.
type disk struct {
	size     int64
	pages    map[int64]*[page]byte
	metadata map[int64]*stored
}

// stored is metadata as committed, and as held by a metadata snapshot.
type stored struct {
	image Image
	root  uint64 // 0: none is held
	held  Image
	user  *Kernel // whose pool has it
}

// NewSAN is one without disks.
func NewSAN() *SAN { return &SAN{} }

// AddDisk adds a disk of zeros and returns what tables call it.
func (s *SAN) AddDisk(size int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks = append(s.disks, &disk{size, map[int64]*[page]byte{}, map[int64]*stored{}})
	return diskNumber(len(s.disks) - 1)
}

// Violations are what real storage would have taken, to its ruin: metadata that
// two hosts had in use at once.
func (s *SAN) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// read and write work on any range.
func (d *disk) read(p []byte, off int64) {
	for len(p) > 0 {
		n := min(int64(len(p)), page-off%page)
		if b := d.pages[off/page]; b != nil {
			copy(p[:n], b[off%page:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

func (d *disk) write(p []byte, off int64) {
	for len(p) > 0 {
		n := min(int64(len(p)), page-off%page)
		if d.pages[off/page] == nil {
			d.pages[off/page] = new([page]byte)
		}
		copy(d.pages[off/page][off%page:], p[:n])
		p, off = p[n:], off+n
	}
}

// diskNumber is what tables call a disk.
func diskNumber(i int) string { return fmt.Sprintf("8:%d", i) }
