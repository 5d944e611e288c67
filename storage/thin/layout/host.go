// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
)

// Where things lie in UUID.host, in bytes.
const (
	requestAt = 512 << 10
	replyAt   = requestAt + block
	// WindowsAt is where windows for metadata may begin.
	WindowsAt = 1 << 20
)

// Limits of a window for dm-thin metadata, in bytes: what init-host makes at
// least, and what the kernel can use (255 bitmaps of 16320 blocks of 4 KiB).
const (
	MinWindow = 1 << 20
	MaxWindow = 255 * 16320 * 4096
)

// maxJournal bounds a host's journal, in bytes, so that two copies of the header
// fit below the slots.
const maxJournal = 192 << 10

// FirstImage is the generation of the metadata that a host's header names when it
// joins. A host writes its own before its pool runs.
const FirstImage = 1

// Window is where one of the two copies of dm-thin metadata lies in UUID.host,
// in bytes; a dm-linear target covers it.
type Window struct{ Offset, Length uint64 }

// HostHeader is a host's private state.
type HostHeader struct {
	Geometry
	Number   uint32 // the host's, in the map
	Name     string
	Image    uint64    // generation of the metadata in the active window
	Active   int       // 0 or 1: the window that counts
	Windows  [2]Window // A and B
	Sequence uint64    // of the last request that this host made
	// Journal is what the host is doing, in its own words: durable before it is
	// done, empty when it is finished.
	Journal []byte
}

// WindowsFor divides a host's volume of so many bytes into two windows. One that
// has no room for two is a failure.NoSpace.
func WindowsFor(dev Device) ([2]Window, error) {
	length := min((dev.Size()-WindowsAt)/2&^(block-1), MaxWindow)
	if length < MinWindow {
		err := failure.New(failure.NoSpace, "%s: %d bytes have no room for metadata", dev.Name(), dev.Size())
		return [2]Window{}, failure.Hint(err, "run `lvextend -L %db %s`", WindowsAt+2*MinWindow, dev.Name())
	}
	return [2]Window{{WindowsAt, uint64(length)}, {WindowsAt + uint64(length), uint64(length)}}, nil
}

// check says which rule a header breaks, on a volume of so many bytes.
func (h HostHeader) check(size int64) error {
	if err := h.Geometry.check(); err != nil {
		return err
	}
	if h.Number == 0 || !ValidName(h.Name) || h.Active < 0 || h.Active > 1 || len(h.Journal) > maxJournal {
		return fmt.Errorf("host %d %q, window %d, a journal of %d bytes", h.Number, h.Name, h.Active, len(h.Journal))
	}
	for i, w := range h.Windows {
		other := h.Windows[1-i]
		if w.Offset%block != 0 || w.Length%block != 0 || w.Offset < WindowsAt || w.Length < MinWindow || w.Length > MaxWindow ||
			w.Offset > uint64(size) || w.Length > uint64(size)-w.Offset || w.Offset >= other.Offset && w.Offset < other.Offset+other.Length {
			return fmt.Errorf("window %c lies at %d+%d, %c at %d+%d, in %d bytes", 'A'+i, w.Offset, w.Length, 'B'-i, other.Offset, other.Length, size)
		}
	}
	return nil
}

func hostHeader(dev Device, cluster, host uuid.UUID) sealed {
	return sealed{dev, place{dev.Name(), KindHost, cluster, host}, 0, requestAt}
}

// CreateHost writes a host's first header onto an empty volume, and empties the
// slots for request and reply.
func CreateHost(dev Device, cluster, host uuid.UUID, epoch uint64, h HostHeader) (Stamp, error) {
	s := hostHeader(dev, cluster, host)
	if err := h.check(dev.Size()); err != nil {
		return Stamp{}, s.place.refuse(ErrInvalid, "%w", err)
	}
	if err := s.absent(); err != nil {
		return Stamp{}, err
	}
	if err := writeFull(dev, requestAt, make([]byte, replyAt+block-requestAt)); err != nil {
		return Stamp{}, err
	}
	first := Stamp{epoch, 1}
	return first, s.create(first, h.encode())
}

// ReadHost returns a host's header as it was committed last.
func ReadHost(dev Device, cluster, host uuid.UUID) (HostHeader, Stamp, error) {
	s := hostHeader(dev, cluster, host)
	contents, stamp, err := s.readNewest()
	if err != nil {
		return HostHeader{}, Stamp{}, err
	}
	h, err := decodeHost(contents)
	if err == nil {
		err = h.check(dev.Size())
	}
	if err != nil {
		return HostHeader{}, Stamp{}, s.place.refuse(ErrInvalid, "%v: %w", stamp, err)
	}
	return h, stamp, nil
}

// CommitHost writes the header that follows the one of stamp last. It is the host
// that does, under the epoch of the map that it knows; or, once the host is
// fenced, the master under its own, which is higher: then the host, should it
// live, gets ErrStale and may not go on.
func CommitHost(dev Device, cluster, host uuid.UUID, last Stamp, epoch uint64, h HostHeader) (Stamp, error) {
	s := hostHeader(dev, cluster, host)
	if err := h.check(dev.Size()); err != nil {
		return last, s.place.refuse(ErrInvalid, "%w", err)
	}
	next := Stamp{epoch, last.Generation + 1}
	if err := s.follow(last, next, h.encode()); err != nil {
		return last, err
	}
	return next, nil
}

// encode is the contents: geometry, u32 number, name, u64 image, u8 active, u64
// offset and length of each window, u64 sequence, journal.
func (h HostHeader) encode() []byte {
	var e encoder
	h.Geometry.encode(&e)
	e.u32(h.Number)
	e.string(h.Name)
	e.u64(h.Image)
	e.u8(uint8(h.Active))
	for _, w := range h.Windows {
		e.u64(w.Offset)
		e.u64(w.Length)
	}
	e.u64(h.Sequence)
	e.bytes(h.Journal)
	return e.b
}

func decodeHost(b []byte) (HostHeader, error) {
	d := decoder{b: b}
	h := HostHeader{Geometry: decodeGeometry(&d), Number: d.u32(), Name: d.string(), Image: d.u64(), Active: int(d.u8())}
	for i := range h.Windows {
		h.Windows[i] = Window{d.u64(), d.u64()}
	}
	h.Sequence, h.Journal = d.u64(), d.bytes()
	if !d.whole() {
		return HostHeader{}, fmt.Errorf("%d bytes are cut off or too many", len(b))
	}
	return h, nil
}
