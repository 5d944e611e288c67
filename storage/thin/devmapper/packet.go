// SPDX-License-Identifier: Apache-2.0

package devmapper

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// packet is what goes to the kernel and comes back: struct dm_ioctl, then what
// depends on the command (include/uapi/linux/dm-ioctl.h). It is made of words, so
// that it is aligned as the structure wants.
type packet []uint64

// dataAt is where the part after the structure begins.
const dataAt = unix.SizeofDmIoctl

// newPacket has room for data and at least room bytes of an answer.
func newPacket(name, uuid string, flags uint32, data []byte, room int) packet {
	p := make(packet, (dataAt+max(len(data), room)+7)/8)
	h := p.header()
	h.Version = [3]uint32{4, 0, 0} // the kernel takes all minors up to its own
	h.Data_size = uint32(len(p) * 8)
	h.Data_start = dataAt
	h.Flags = flags
	copy(h.Name[:len(h.Name)-1], name)
	copy(h.Uuid[:len(h.Uuid)-1], uuid)
	copy(p.data(), data)
	return p
}

func (p packet) header() *unix.DmIoctl { return (*unix.DmIoctl)(unsafe.Pointer(unsafe.SliceData(p))) }

func (p packet) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(p))), len(p)*8)
}

func (p packet) data() []byte { return p.bytes()[dataAt:] }

// text is a string up to its NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func (p packet) info() Info {
	h := p.header()
	return Info{
		Name: text(h.Name[:]), UUID: text(h.Uuid[:]), Major: unix.Major(h.Dev), Minor: unix.Minor(h.Dev), Open: int(h.Open_count),
		Events: h.Event_nr, Suspended: h.Flags&unix.DM_SUSPEND_FLAG != 0, Live: h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		Inactive: h.Flags&unix.DM_INACTIVE_PRESENT_FLAG != 0,
	}
}

// encodeTable is a sequence of struct dm_target_spec, each with its line, a NUL
// and zeros up to 8 bytes; next is the distance to the one after it.
func encodeTable(t Table) []byte {
	ne := binary.NativeEndian
	var out []byte
	var at uint64
	for _, s := range t {
		line := append([]byte(s.Target.Params()), 0)
		size := (unix.SizeofDmTargetSpec + len(line) + 7) &^ 7
		b := make([]byte, size)
		ne.PutUint64(b, at)
		ne.PutUint64(b[8:], s.Length)
		ne.PutUint32(b[20:], uint32(size))
		copy(b[24:39], s.Target.Type())
		copy(b[unix.SizeofDmTargetSpec:], line)
		out, at = append(out, b...), at+s.Length
	}
	return out
}

// line is a target's in an answer.
type line struct {
	length     uint64
	name, text string
}

// lines reads the sequence in an answer, where next counts from the first one.
func (p packet) lines() []line {
	ne := binary.NativeEndian
	h := p.header()
	b := p.bytes()
	b = b[min(int(h.Data_start), len(b)):min(int(h.Data_size), len(b))]
	var out []line
	at := 0
	for range h.Target_count {
		if at < 0 || at > len(b)-unix.SizeofDmTargetSpec {
			break
		}
		s := b[at:]
		out = append(out, line{ne.Uint64(s[8:]), text(s[24:40]), text(s[unix.SizeofDmTargetSpec:])})
		at = int(ne.Uint32(s[20:]))
	}
	return out
}

// names reads a sequence of struct dm_name_list, where next counts from the same.
func (p packet) names() []string {
	ne := binary.NativeEndian
	h := p.header()
	b := p.bytes()
	b = b[min(int(h.Data_start), len(b)):min(int(h.Data_size), len(b))]
	var out []string
	for len(b) >= 12 && ne.Uint64(b) != 0 {
		out = append(out, text(b[12:]))
		next := int(ne.Uint32(b[8:]))
		if next == 0 || next > len(b) {
			break
		}
		b = b[next:]
	}
	return out
}
