// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"

	"github.com/google/uuid"
)

// MaxBody bounds what a request or reply says, in bytes.
const MaxBody = block - sector - 2 - 4

// Message is a request of a host or the master's reply. Each lies in a slot of
// 4 KiB in UUID.host: a header as all sealed state has, with the sequence for a
// generation, and in the same block u16 code, u32 length and body. One block has
// one writer, so there is no second copy: a message that was torn is written
// again by the one who still means it.
type Message struct {
	Sequence uint64 // of the request; a reply has its request's
	Epoch    uint64 // of the master that the sender knows, or is
	Code     uint16 // verb of a request, outcome of a reply
	Body     []byte
}

// slot is where a request or a reply lies.
type slot struct {
	dev   Device
	place place
	at    int64
}

func request(dev Device, cluster, host uuid.UUID) slot {
	return slot{dev, place{dev.Name(), KindRequest, cluster, host}, requestAt}
}

func reply(dev Device, cluster, host uuid.UUID) slot {
	return slot{dev, place{dev.Name(), KindReply, cluster, host}, replyAt}
}

// WriteRequest puts a host's request where the master looks. The host has made
// its sequence durable before, in its header. A request of a lower sequence than
// the one that is there is ErrMoved.
func WriteRequest(dev Device, cluster, host uuid.UUID, m Message) error {
	return request(dev, cluster, host).write(m)
}

// ReadRequest returns the request that is in a host's slot; ErrEmpty if there was
// never one, ErrDamaged (a failure.Temporary here) while it is being written.
func ReadRequest(dev Device, cluster, host uuid.UUID) (Message, error) {
	return request(dev, cluster, host).read()
}

// WriteReply answers a request, after what it asked for is committed. A reply of
// an epoch older than the one that is there is ErrStale.
func WriteReply(dev Device, cluster, host uuid.UUID, m Message) error {
	return reply(dev, cluster, host).write(m)
}

// ReadReply returns the answer to a request of a sequence; ErrPending until there
// is one.
func ReadReply(dev Device, cluster, host uuid.UUID, sequence uint64) (Message, error) {
	s := reply(dev, cluster, host)
	m, err := s.read()
	switch {
	case errors.Is(err, ErrEmpty):
		return Message{}, s.place.refuse(ErrPending, "sequence %d", sequence)
	case err == nil && m.Sequence < sequence:
		return Message{}, s.place.refuse(ErrPending, "sequence %d, the last answer is to %d", sequence, m.Sequence)
	case err == nil && m.Sequence > sequence:
		return Message{}, s.place.refuse(ErrMoved, "sequence %d, the last answer is to %d", sequence, m.Sequence)
	}
	return m, err
}

func (s slot) read() (Message, error) {
	b, err := readFull(s.dev, s.at, block)
	if err != nil {
		return Message{}, err
	}
	h, reason := s.place.decodeHeader(b[:sector])
	if errors.Is(reason, ErrForeign) {
		reason = ErrDamaged // the host's header lies before it: half a write is all that this can be
	}
	if reason != nil {
		return Message{}, s.place.refuse(reason, "%s", s.place.describe(b, reason))
	}
	if h.offset != s.at+sector || h.length != block-sector || castagnoli(b[sector:]) != h.crc {
		return Message{}, s.place.refuse(ErrDamaged, "sequence %d is written in part", h.Generation)
	}
	d := decoder{b: b[sector:]}
	m := Message{Sequence: h.Generation, Epoch: h.Epoch, Code: d.u16(), Body: d.bytes()}
	if d.short {
		return Message{}, s.place.refuse(ErrInvalid, "sequence %d", h.Generation)
	}
	return m, nil
}

func (s slot) write(m Message) error {
	if len(m.Body) > MaxBody {
		return s.place.refuse(ErrInvalid, "%d bytes, at most %d fit", len(m.Body), MaxBody)
	}
	switch old, err := s.read(); {
	case errors.Is(err, ErrEmpty), errors.Is(err, ErrDamaged):
	case err != nil:
		return err
	case old.Epoch > m.Epoch:
		return s.place.refuse(ErrStale, "epoch %d is on the disk, this is epoch %d", old.Epoch, m.Epoch)
	case old.Sequence > m.Sequence:
		return s.place.refuse(ErrMoved, "sequence %d is on the disk, this is %d", old.Sequence, m.Sequence)
	}
	var e encoder
	e.u16(m.Code)
	e.bytes(m.Body)
	rest := append(e.b, make([]byte, block-sector-len(e.b))...)
	h := header{Stamp: Stamp{m.Epoch, m.Sequence}, offset: s.at + sector, length: int64(len(rest)), crc: castagnoli(rest)}
	return writeFull(s.dev, s.at, append(s.place.encodeHeader(h), rest...))
}
