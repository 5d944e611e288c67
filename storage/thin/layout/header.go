// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/google/uuid"
)

// Kind is the kind of a sealed object, four bytes on the disk.
type Kind string

// The kinds.
const (
	KindMap     Kind = "map "
	KindLabel   Kind = "data"
	KindHost    Kind = "host"
	KindVolume  Kind = "thin"
	KindRequest Kind = "rqst"
	KindReply   Kind = "rply"
)

// Stamp orders the states of an object: by epoch, then by generation.
type Stamp struct {
	Epoch      uint64 // of the master that wrote it
	Generation uint64 // of the object; for requests and replies the sequence
}

func (s Stamp) String() string { return fmt.Sprintf("epoch %d generation %d", s.Epoch, s.Generation) }

func (s Stamp) before(t Stamp) bool {
	return s.Epoch < t.Epoch || s.Epoch == t.Epoch && s.Generation < t.Generation
}

// place is what should lie somewhere, for checks and messages.
type place struct {
	name    string // of the device
	kind    Kind
	cluster uuid.UUID
	object  uuid.UUID // volume or host; Nil for map and label
}

func (p place) String() string {
	what := map[Kind]string{
		KindMap: "map of the cluster", KindLabel: "label of the data", KindHost: "host header", KindVolume: "mapping",
		KindRequest: "request", KindReply: "reply",
	}[p.kind]
	return p.name + ": " + what
}

const (
	magic         = "dh-thin\n"
	formatVersion = 1
	sector        = 512 // what every disk writes as a whole
	headerCRC     = sector - 4
)

// castagnoli is CRC-32C, which dm-thin uses, too, and processors compute.
func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// header is one sector that seals contents. The package comment has the bytes.
type header struct {
	Stamp
	offset, length int64
	crc            uint32
	copy           uint32
}

func (p place) encodeHeader(h header) []byte {
	b := make([]byte, 0, sector)
	b = append(b, magic...)
	b = append(b, p.kind...)
	le := binary.LittleEndian
	b = le.AppendUint32(b, formatVersion)
	b = append(b, p.cluster[:]...)
	b = append(b, p.object[:]...)
	for _, v := range []uint64{h.Epoch, h.Generation, uint64(h.offset), uint64(h.length)} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, h.crc)
	b = le.AppendUint32(b, h.copy)
	b = b[:headerCRC]
	return le.AppendUint32(b, castagnoli(b))
}

// decodeHeader reads one sector. An error is one of ErrEmpty, ErrForeign,
// ErrDamaged, ErrVersion, ErrOtherCluster.
func (p place) decodeHeader(b []byte) (header, error) {
	le := binary.LittleEndian
	switch {
	case len(bytes.TrimLeft(b, "\x00")) == 0:
		return header{}, ErrEmpty
	case string(b[:8]) != magic:
		return header{}, ErrForeign
	case le.Uint32(b[headerCRC:]) != castagnoli(b[:headerCRC]):
		return header{}, ErrDamaged
	case le.Uint32(b[12:]) != formatVersion:
		return header{}, ErrVersion
	case Kind(b[8:12]) != p.kind:
		return header{}, ErrForeign
	case uuid.UUID(b[16:32]) != p.cluster || uuid.UUID(b[32:48]) != p.object:
		return header{}, ErrOtherCluster
	}
	return header{
		Stamp:  Stamp{le.Uint64(b[48:]), le.Uint64(b[56:])},
		offset: int64(le.Uint64(b[64:])), length: int64(le.Uint64(b[72:])), crc: le.Uint32(b[80:]), copy: le.Uint32(b[84:]),
	}, nil
}

// describe says more about a header that was refused for a reason.
func (p place) describe(b []byte, reason error) string {
	switch {
	case errors.Is(reason, ErrVersion):
		return fmt.Sprintf("version %d, known is %d", binary.LittleEndian.Uint32(b[12:]), formatVersion)
	case errors.Is(reason, ErrOtherCluster):
		return fmt.Sprintf("cluster %s object %s, wanted cluster %s object %s", uuid.UUID(b[16:32]), uuid.UUID(b[32:48]), p.cluster, p.object)
	case errors.Is(reason, ErrForeign):
		return fmt.Sprintf("it begins with %q", b[:12])
	}
	return "header"
}
