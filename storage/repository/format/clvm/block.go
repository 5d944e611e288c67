// SPDX-License-Identifier: Apache-2.0

package clvm

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/google/uuid"

	"diskhook/storage/directio"
	"diskhook/storage/repository/format"
)

// blockSize is what is written at once, in bytes.
const blockSize = directio.Align

// slotSize is that of two blocks, A and B, of which the newer one counts.
const slotSize = 2 * blockSize

// block is one version of what lies in a slot. The package comment has the bytes.
type block struct {
	kind     byte
	id       uuid.UUID
	sequence uint64
	body     []byte
}

// The kinds of blocks. A free one says that its slot holds nothing any more.
const (
	kindFree   = 'f'
	kindHeader = 'h'
	kindHost   = 'l' // the locks of a host
)

// kinds of blocks of the kinds of documents.
var kinds = map[format.Kind]byte{
	format.Repository: 'r', format.Image: 'i', format.Volume: 'v',
	format.Operation: 'o', format.Pin: 'p', format.Stop: 's', format.Aside: 'a',
}

const (
	magic        = "dh-clvm\n"
	blockVersion = 1
	bodyAt       = 56
	maxBody      = blockSize - bodyAt
)

// health of a block that was read.
type health byte

const (
	whole   health = iota
	empty          // nothing was ever written
	damaged        // half a write, or worse
	foreign        // of another repository, or of a later version
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode renders a block of the repository that area names.
func (b block) encode(area uuid.UUID) []byte {
	out := directio.Buffer(blockSize)
	copy(out, magic)
	out[12], out[13] = blockVersion, b.kind
	le := binary.LittleEndian
	le.PutUint16(out[14:], uint16(len(b.body)))
	copy(out[16:], area[:])
	copy(out[32:], b.id[:])
	le.PutUint64(out[48:], b.sequence)
	copy(out[bodyAt:], b.body)
	le.PutUint32(out[8:], crc32.Checksum(out[12:], castagnoli))
	return out
}

// decode reads a block. Nil is any repository.
func decode(in []byte, area uuid.UUID) (block, health) {
	le := binary.LittleEndian
	switch {
	case len(bytes.TrimLeft(in, "\x00")) == 0:
		return block{}, empty
	case string(in[:8]) != magic || le.Uint32(in[8:]) != crc32.Checksum(in[12:], castagnoli):
		return block{}, damaged
	case in[12] != blockVersion || area != uuid.Nil && uuid.UUID(in[16:32]) != area:
		return block{}, foreign
	}
	n := int(le.Uint16(in[14:]))
	if n > maxBody {
		return block{}, damaged
	}
	return block{in[13], uuid.UUID(in[32:48]), le.Uint64(in[48:]), bytes.Clone(in[bodyAt:][:n])}, whole
}

// slot is a place for one document as it was read.
type slot struct {
	at     int64 // in the volume
	newest block // kindFree if there is none
	half   int   // where newest is: 0 or 1
	health health
	bytes  []byte // all of it, if it is not whole
}

// decodeSlot reads a slot. One block that cannot be read is what a crash leaves of a
// write: the other one counts, or there never was anything. Two are damage.
func decodeSlot(in []byte, at int64, area uuid.UUID) slot {
	s := slot{at: at, newest: block{kind: kindFree}, half: 1} // the first version goes to A
	var read [2]health
	for i := range read {
		var b block
		b, read[i] = decode(in[i*blockSize:][:blockSize], area)
		if read[i] == whole && (s.newest.sequence == 0 || b.sequence > s.newest.sequence) {
			s.newest, s.half = b, i
		}
	}
	switch {
	case s.newest.sequence > 0, read[0] == empty || read[1] == empty:
	case read[0] == foreign && read[1] == foreign:
		s.health = foreign
	default:
		s.health = damaged
	}
	if s.health != whole {
		s.bytes = bytes.Clone(in)
	}
	return s
}

// next is where the version after the newest goes, and its sequence.
func (s slot) next() (at int64, sequence uint64) {
	return s.at + int64(1-s.half)*blockSize, s.newest.sequence + 1
}
