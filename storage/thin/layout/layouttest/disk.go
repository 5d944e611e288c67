// SPDX-License-Identifier: Apache-2.0

// Package layouttest is a disk in memory that loses power.
//
// It keeps what a disk promises and nothing more: after a flush everything before
// it stays; before one, each sector of 512 bytes that was written may have
// arrived or not, in any order, and one may be torn, with anything in it; but for
// one that was written with what it had, which is the same however much arrived.
package layouttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"diskhook/storage/directio"
)

// ErrPower is what a request gets when there is no power.
var ErrPower = errors.New("the power is off")

const sector = 512

// Disk is a disk; it implements layout.Device.
type Disk struct {
	name    string
	size    int64
	stable  map[int64][]byte // sectors that are not zeros, by offset; never changed
	pending map[int64][]byte // sectors that were written since the last flush
	// Power is how many more writes and flushes there is power for; below 0 it
	// stays on. The write at which it goes off arrives in part.
	Power int
	off   bool
	// Writes counts writes and flushes.
	Writes int
}

// New makes a disk of size bytes of zeros, with the power on.
func New(name string, size int64) *Disk {
	return &Disk{name: name, size: size, stable: map[int64][]byte{}, pending: map[int64][]byte{}, Power: -1}
}

// Name is the disk's.
func (d *Disk) Name() string { return d.name }

// Size is its size in bytes.
func (d *Disk) Size() int64 { return d.size }

// Grow makes it larger, with zeros.
func (d *Disk) Grow(bytes int64) { d.size += bytes }

func (d *Disk) check(p []byte, off int64) error {
	if !directio.Fits(p, off) {
		return fmt.Errorf("%s: %d bytes at %d are not aligned", d.name, len(p), off)
	}
	if off < 0 || off+int64(len(p)) > d.Size() {
		return fmt.Errorf("%s: %d bytes at %d: %w", d.name, len(p), off, io.ErrUnexpectedEOF)
	}
	return nil
}

// ReadAt is io.ReaderAt. What was written is read back, flushed or not.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if d.off {
		return 0, ErrPower
	}
	if err := d.check(p, off); err != nil {
		return 0, err
	}
	for i := int64(0); i < int64(len(p)); i += sector {
		from, ok := d.pending[off+i]
		if !ok {
			from = d.at(off + i)
		}
		copy(p[i:], from)
	}
	return len(p), nil
}

// at is the sector at an offset as it is on the disk.
func (d *Disk) at(off int64) []byte {
	if b := d.stable[off]; b != nil {
		return b
	}
	return make([]byte, sector)
}

// WriteAt is io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(p, off); err != nil {
		return 0, err
	}
	if d.off {
		return 0, ErrPower
	}
	for i := int64(0); i < int64(len(p)); i += sector {
		d.pending[off+i] = slices.Clone(p[i:][:sector])
	}
	if d.passed() {
		return 0, ErrPower
	}
	return len(p), nil
}

// Flush makes what was written stay.
func (d *Disk) Flush() error {
	if d.off || d.passed() {
		return ErrPower
	}
	maps.Copy(d.stable, d.pending)
	clear(d.pending)
	return nil
}

func (d *Disk) passed() bool {
	d.Writes++
	d.off = d.Power == 0
	d.Power--
	return d.off
}

// Boot switches the power on for good. Of what was not flushed, the sectors stay
// for which arrived says so; torn, if not 0, is how many of them there have to be
// for the last to be one that holds neither old nor new.
func (d *Disk) Boot(arrived func() bool, torn int) {
	for i, at := range slices.Sorted(maps.Keys(d.pending)) {
		switch {
		case bytes.Equal(d.pending[at], d.at(at)):
		case torn != 0 && i == torn%len(d.pending):
			b := slices.Clone(d.at(at))
			for j := range b {
				b[j] ^= byte(j + torn)
			}
			d.stable[at] = b
		case arrived():
			d.stable[at] = d.pending[at]
		}
	}
	clear(d.pending)
	d.off, d.Power = false, -1
}

// Rot changes a byte behind everybody's back.
func (d *Disk) Rot(at int64) {
	var b [1]byte
	copy(b[:], d.at(at / sector * sector)[at%sector:])
	d.Write(at, []byte{b[0] ^ 0x5a})
}

// Write puts bytes onto the disk past all of this, at any offset.
func (d *Disk) Write(at int64, b []byte) {
	for len(b) > 0 {
		first := at / sector * sector
		whole := slices.Clone(d.at(first))
		n := copy(whole[at-first:], b)
		d.stable[first] = whole
		at, b = at+int64(n), b[n:]
	}
}
