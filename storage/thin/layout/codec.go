// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"encoding/binary"

	"github.com/google/uuid"
)

// encoder builds contents.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)      { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16)    { e.b = binary.LittleEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32)    { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64)    { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) id(v uuid.UUID)  { e.b = append(e.b, v[:]...) }
func (e *encoder) bytes(v []byte)  { e.u32(uint32(len(v))); e.b = append(e.b, v...) }
func (e *encoder) string(v string) { e.bytes([]byte(v)) }
func (e *encoder) u32s(v []uint32) {
	e.u32(uint32(len(v)))
	for _, x := range v {
		e.u32(x)
	}
}

// decoder takes contents apart. After the end it yields zeros and is short.
type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.short, d.b = true, nil
		return make([]byte, max(0, min(n, 16)))
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) u8() uint8     { return d.take(1)[0] }
func (d *decoder) u16() uint16   { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32   { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64   { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *decoder) id() uuid.UUID { return uuid.UUID(d.take(16)) }

// count reads how many records of at least size bytes follow, which cannot be
// more than there are bytes for.
func (d *decoder) count(size int) int {
	n := int64(d.u32())
	if n*int64(size) > int64(len(d.b)) {
		d.take(-1)
		return 0
	}
	return int(n)
}

func (d *decoder) bytes() []byte  { return d.take(d.count(1)) }
func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) u32s() []uint32 {
	var v []uint32
	for range d.count(4) {
		v = append(v, d.u32())
	}
	return v
}

// whole says that the contents had just the right length.
func (d *decoder) whole() bool { return !d.short && len(d.b) == 0 }
