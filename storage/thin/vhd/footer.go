// SPDX-License-Identifier: Apache-2.0

package vhd

import (
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// epoch is when VHD's seconds begin.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// footer is the 512 bytes at both ends of an image.
type footer struct {
	size    int64
	id      uuid.UUID
	created time.Time
}

// The kinds of disks.
const (
	fixed        = 2
	dynamic      = 3
	differencing = 4
)

func (f footer) encode() []byte {
	be := binary.BigEndian
	b := make([]byte, sector)
	copy(b, "conectix")
	be.PutUint32(b[8:], 2)        // features: the reserved bit, always set
	be.PutUint32(b[12:], 0x10000) // version 1.0
	be.PutUint64(b[16:], headerAt)
	be.PutUint32(b[24:], uint32(max(0, f.created.Unix()-epoch.Unix())))
	// Readers take the size from the geometry, which cannot express every size,
	// unless they know that the creator means the size field. Of those that
	// QEMU knows (block/vpc.c) this is XenServer's.
	copy(b[28:], "tap\x00")
	be.PutUint32(b[32:], 0x10003)
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], uint64(f.size))
	be.PutUint64(b[48:], uint64(f.size))
	cylinders, heads, sectors := geometry(f.size / sector)
	be.PutUint16(b[56:], cylinders)
	b[58], b[59] = heads, sectors
	be.PutUint32(b[60:], dynamic)
	copy(b[68:], f.id[:])
	be.PutUint32(b[64:], checksum(b))
	return b
}

// geometry is the CHS that the specification's appendix computes.
func geometry(total int64) (cylinders uint16, heads, sectors uint8) {
	total = min(total, 65535*16*255)
	h, s := int64(16), int64(255)
	if total < 65535*16*63 {
		s = 17
		h = max(4, (total/s+1023)/1024)
		if total/s >= h*1024 || h > 16 {
			h, s = 16, 31
		}
		if total/s >= h*1024 {
			s = 63
		}
	}
	return uint16(total / s / h), uint8(h), uint8(s)
}

// checksum is the complement of the sum of all bytes; the field itself has to be
// zero.
func checksum(b []byte) uint32 {
	var sum uint32
	for _, c := range b {
		sum += uint32(c)
	}
	return ^sum
}

// valid checks the sum of a structure that has it at an offset.
func valid(b []byte, at int) bool {
	have := binary.BigEndian.Uint32(b[at:])
	sum := ^checksum(b)
	for _, c := range b[at:][:4] {
		sum -= uint32(c)
	}
	return ^sum == have
}
