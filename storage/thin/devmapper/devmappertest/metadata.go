// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"syscall"

	"diskhook/storage/thin/devmapper"
)

// locate follows linear windows down to a disk. Of what serves no bytes of a disk
// there is none.
func (k *Kernel) locate(number string, off int64) (*disk, int64, syscall.Errno) {
	if d := k.mapped(number); d != nil {
		s, within, ok := d.segment(off)
		if !ok {
			return nil, 0, syscall.EIO
		}
		t, linear := s.Target.(devmapper.Linear)
		if !linear {
			return nil, 0, syscall.EIO
		}
		return k.locate(k.canonical(t.Device), int64(t.Start)*sector+within)
	}
	for i, d := range k.san.disks {
		if number == diskNumber(i) && off < d.size {
			return d, off, 0
		}
	}
	return nil, 0, syscall.EIO
}

// segment is the one that serves a byte, and where in it that is.
func (d *device) segment(off int64) (devmapper.Segment, int64, bool) {
	if d.live == nil || off < 0 {
		return devmapper.Segment{}, 0, false
	}
	for _, s := range d.live.Table {
		if length := int64(s.Length) * sector; off >= length {
			off -= length
			continue
		}
		return s, off, true
	}
	return devmapper.Segment{}, 0, false
}

// size is a device's, in bytes.
func (k *Kernel) size(number string) int64 {
	if d := k.mapped(number); d != nil {
		if d.live == nil {
			return 0
		}
		return int64(d.live.Sectors()) * sector
	}
	for i, d := range k.san.disks {
		if number == diskNumber(i) {
			return d.size
		}
	}
	return 0
}

// metadataAt is the metadata on a device and how many blocks there are for them.
func (k *Kernel) metadataAt(number string) (*stored, uint64, syscall.Errno) {
	d, at, errno := k.locate(number, 0)
	if errno != 0 {
		return nil, 0, errno
	}
	if d.metadata[at] == nil {
		d.metadata[at] = &stored{}
	}
	return d.metadata[at], uint64(k.size(number) / page), 0
}

// WriteMetadata does what a tool does that writes metadata onto a device; EBUSY
// while a pool has it.
func (k *Kernel) WriteMetadata(name string, image Image) error {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	store, errno := k.idle(name)
	if errno != 0 {
		return refuse("write metadata", name, errno)
	}
	*store = stored{image: image.Clone()}
	store.image.plant()
	return nil
}

// ReadMetadata does what a tool does that reads them: as they were committed, or,
// with the number of the root that the pool's status says, as they are held,
// which works while a pool has them.
func (k *Kernel) ReadMetadata(name string, root uint64) (Image, error) {
	k.san.mu.Lock()
	defer k.san.mu.Unlock()
	if root == 0 {
		store, errno := k.idle(name)
		if errno != 0 {
			return Image{}, refuse("read metadata", name, errno)
		}
		return store.image.Clone(), nil
	}
	d := k.devices[name]
	if d == nil {
		return Image{}, refuse("read metadata", name, syscall.ENXIO)
	}
	store, _, errno := k.metadataAt(d.number())
	if errno == 0 && store.root != root {
		errno = syscall.EINVAL
	}
	if errno != 0 {
		return Image{}, refuse("read metadata", name, errno)
	}
	return store.held.Clone(), nil
}

// idle is metadata that no pool of this host has.
func (k *Kernel) idle(name string) (*stored, syscall.Errno) {
	d := k.devices[name]
	if d == nil {
		return nil, syscall.ENXIO
	}
	for _, p := range k.pools {
		if p.metadata == d.number() {
			return nil, syscall.EBUSY
		}
	}
	store, _, errno := k.metadataAt(d.number())
	return store, errno
}
