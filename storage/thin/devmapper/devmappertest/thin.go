// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"syscall"

	"diskhook/storage/thin/devmapper"
)

func (p *pool) blockSize() int64 { return int64(p.spec.BlockSectors) * sector }

// part is the block that a request begins in, where in it, and what of the request
// lies in it.
func (p *pool) part(off int64, b []byte) (virtual uint64, within int64, rest []byte) {
	size := p.blockSize()
	within = off % size
	return uint64(off / size), within, b[:min(int64(len(b)), size-within)]
}

// dataAt is where a data block lies.
func (p *pool) dataAt(block uint64, within int64) (*disk, int64, syscall.Errno) {
	return p.k.locate(p.data, int64(block)*p.blockSize()+within)
}

// read reads within a block.
func (p *pool) read(t devmapper.Thin, off int64, b []byte) (int64, syscall.Errno) {
	virtual, within, b := p.part(off, b)
	m, mapped := p.image.Devices[t.ID].Mappings[virtual]
	if !mapped {
		clear(b)
		if t.Origin != "" {
			return int64(len(b)), p.readOrigin(t, off, b)
		}
		return int64(len(b)), 0
	}
	d, at, errno := p.dataAt(m.Block, within)
	if errno == 0 {
		d.read(b, at)
	}
	return int64(len(b)), errno
}

// readOrigin reads from an external origin, which has zeros beyond its end.
func (p *pool) readOrigin(t devmapper.Thin, off int64, b []byte) syscall.Errno {
	origin := p.k.canonical(t.Origin)
	b = b[:max(0, min(int64(len(b)), p.k.size(origin)-off))]
	if len(b) == 0 {
		return 0
	}
	d, at, errno := p.k.locate(origin, off)
	if errno == 0 {
		d.read(b, at)
	}
	return errno
}

// write writes within a block: in place if it is mapped and was not shared since,
// else into a new one.
func (p *pool) write(t devmapper.Thin, off int64, b []byte) (int64, outcome, syscall.Errno) {
	virtual, within, b := p.part(off, b)
	dev := p.image.Devices[t.ID]
	m, mapped := dev.Mappings[virtual]
	if !mapped || m.Time < dev.SnapTime {
		block, out, errno := p.provision(t, virtual, m, mapped)
		if errno != 0 || out == full {
			return 0, out, errno
		}
		m.Block = block
	}
	d, at, errno := p.dataAt(m.Block, within)
	if errno == 0 {
		d.write(b, at)
	}
	return int64(len(b)), done, errno
}

// provision maps a new block with the contents of the one before, if there is one.
func (p *pool) provision(t devmapper.Thin, virtual uint64, old Mapped, mapped bool) (uint64, outcome, syscall.Errno) {
	block, ok := uint64(0), false
	if p.mode == devmapper.ReadWrite {
		block, ok = p.allocate()
	}
	switch {
	case ok:
	case p.mode == devmapper.OutOfDataSpace && p.errorIfNoSpace:
		return 0, done, syscall.ENOSPC
	case p.mode == devmapper.OutOfDataSpace:
		return 0, full, 0
	default:
		return 0, done, syscall.EIO
	}
	contents := make([]byte, p.blockSize())
	off := int64(virtual) * p.blockSize()
	if mapped || t.Origin != "" {
		if _, errno := p.read(t, off, contents); errno != 0 {
			return 0, done, errno
		}
	}
	d, at, errno := p.dataAt(block, 0)
	if errno != 0 {
		return 0, done, errno
	}
	if mapped || t.Origin != "" || !p.spec.Features.SkipZeroing {
		d.write(contents, at)
	}
	if mapped {
		p.put(old.Block)
	}
	p.use[block]++
	p.shadow(t.ID)
	p.image.Devices[t.ID].Mappings[virtual] = Mapped{block, p.image.Time}
	return block, done, 0
}

// discard drops whole blocks. A pool that cannot change its metadata says nothing.
func (p *pool) discard(id uint32, off, length int64) syscall.Errno {
	if p.spec.Features.IgnoreDiscard {
		return syscall.EOPNOTSUPP
	}
	if p.mode == devmapper.ReadOnly {
		return 0
	}
	size := p.blockSize()
	mappings := p.image.Devices[id].Mappings
	for v := (off + size - 1) / size; v < (off+length)/size; v++ {
		if m, mapped := mappings[uint64(v)]; mapped {
			p.shadow(id)
			delete(mappings, uint64(v))
			p.put(m.Block)
		}
	}
	return 0
}
