// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/directio"
)

// sealed is a range [from, to) of a device that holds two copies of something;
// see the package comment.
type sealed struct {
	dev   Device
	place place
	from  int64
	to    int64
}

// maxContents bounds what is read into memory at once, in bytes.
const maxContents = 512 << 20

// contentsAt is where the first contents may begin, after the header blocks.
func (s sealed) contentsAt() int64 { return s.from + 2*block }

// found is a header that was found, and in which of the two blocks.
type found struct {
	header
	block int
}

// look is what the header blocks say.
type look struct {
	headers []found  // those that can be read, one or two of a block
	reasons [2]error // why a block has none
	details [2]string
}

// look reads both header blocks. Those of a volume that ends before them, a file that
// was cut off, are damaged.
func (s sealed) look() (look, error) {
	var l look
	if size := s.dev.Size(); size < s.contentsAt() {
		for i := range 2 {
			l.reasons[i], l.details[i] = ErrDamaged, fmt.Sprintf("it is cut off after %d bytes", size)
		}
		return l, nil
	}
	b, err := readFull(s.dev, s.from, 2*block)
	if err != nil {
		return l, err
	}
	for i := range 2 {
		both := b[i*block:][:block]
		for _, at := range []int{0, block - sector} {
			h, reason := s.place.decodeHeader(both[at:][:sector])
			if reason == nil {
				reason = s.fits(h, i)
			}
			switch {
			case reason == nil:
				l.headers = append(l.headers, found{h, i})
			case l.reasons[i] == nil, errors.Is(reason, ErrEmpty):
				// Half a first write leaves a sector that is still empty.
				l.reasons[i], l.details[i] = reason, s.place.describe(both[at:], reason)
			}
		}
	}
	for _, h := range l.headers {
		l.reasons[h.block] = nil
	}
	return l, nil
}

// fits says why the contents of a header are not to be looked for.
func (s sealed) fits(h header, i int) error {
	switch {
	case int(h.copy) != i || h.length < 0 || h.length > maxContents || h.offset < s.contentsAt() || h.offset%block != 0:
		return ErrDamaged
	case h.offset > s.to-roundUp(h.length):
		return ErrShort
	}
	return nil
}

// foreign is the first reason for which nothing here may be trusted. Damage is
// one only if the newest state matters: where the wanted one is known, the other
// block's does not.
func (s sealed) foreign(l look, damage bool) error {
	for i, reason := range l.reasons {
		if reason == nil || errors.Is(reason, ErrEmpty) || !damage && (errors.Is(reason, ErrDamaged) || errors.Is(reason, ErrShort)) {
			continue
		}
		return s.place.refuse(reason, "copy %c: %s", 'A'+i, l.details[i])
	}
	return nil
}

// newest is the state that was committed last.
func (l look) newest() (newest found, ok bool) {
	for _, h := range l.headers {
		if !ok || newest.before(h.Stamp) {
			newest, ok = h, true
		}
	}
	return newest, ok
}

// generation is the state of a generation; of two the later master's.
func (l look) generation(g uint64) (found, bool) {
	var of look
	for _, h := range l.headers {
		if h.Generation == g {
			of.headers = append(of.headers, h)
		}
	}
	return of.newest()
}

// readNewest returns the state that was committed last.
func (s sealed) readNewest() ([]byte, Stamp, error) {
	l, err := s.look()
	if err != nil {
		return nil, Stamp{}, err
	}
	if err := s.foreign(l, true); err != nil {
		return nil, Stamp{}, err
	}
	h, ok := l.newest()
	if !ok {
		return nil, Stamp{}, s.place.refuse(ErrEmpty, "both copies")
	}
	contents, err := s.contents(h)
	return contents, h.Stamp, err
}

// readGeneration returns the state of a generation, which some other state names.
func (s sealed) readGeneration(g uint64) ([]byte, Stamp, error) {
	l, err := s.look()
	if err != nil {
		return nil, Stamp{}, err
	}
	if err := s.foreign(l, false); err != nil {
		return nil, Stamp{}, err
	}
	h, ok := l.generation(g)
	switch {
	case ok:
		contents, err := s.contents(h)
		return contents, h.Stamp, err
	case len(l.headers) == 0 && errors.Is(l.reasons[0], ErrEmpty) && errors.Is(l.reasons[1], ErrEmpty):
		return nil, Stamp{}, s.place.refuse(ErrEmpty, "both copies")
	}
	reason := ErrDamaged
	if slices.Contains(l.reasons[:], ErrShort) {
		reason = ErrShort
	}
	return nil, Stamp{}, s.place.refuse(reason, "generation %d is not here", g)
}

// contents reads what a header seals.
func (s sealed) contents(h found) ([]byte, error) {
	b, err := readFull(s.dev, h.offset, h.length)
	if err != nil {
		return nil, err
	}
	if castagnoli(b) != h.crc {
		return nil, s.place.refuse(ErrDamaged, "copy %c: the contents of %v do not match their checksum", 'A'+h.block, h.Stamp)
	}
	return b, nil
}

// absent fails unless there is nothing yet.
func (s sealed) absent() error {
	l, err := s.look()
	if err != nil {
		return err
	}
	if err := s.foreign(l, true); err != nil {
		return err
	}
	if h, ok := l.newest(); ok {
		return s.place.refuse(ErrExists, "%v", h.Stamp)
	}
	return nil
}

// create writes the first state onto what is empty.
func (s sealed) create(next Stamp, contents []byte) error {
	if err := s.absent(); err != nil {
		return err
	}
	return s.write(0, s.contentsAt(), next, contents)
}

// follow writes the state that comes after the newest, which must still be last.
func (s sealed) follow(last, next Stamp, contents []byte) error {
	l, err := s.look()
	if err != nil {
		return err
	}
	if err := s.foreign(l, true); err != nil {
		return err
	}
	if err := s.fresh(l, next); err != nil {
		return err
	}
	h, ok := l.newest()
	if !ok {
		return s.place.refuse(ErrEmpty, "both copies")
	}
	if h.Stamp != last {
		return s.place.refuse(ErrMoved, "%v is on the disk, not %v", h.Stamp, last)
	}
	return s.beside(h, next, contents)
}

// replace writes a state beside the one of generation keep, over whatever else
// there is: something that nobody committed to, or the one before.
func (s sealed) replace(keep uint64, next Stamp, contents []byte) error {
	l, err := s.look()
	if err != nil {
		return err
	}
	if err := s.foreign(l, false); err != nil {
		return err
	}
	if err := s.fresh(l, next); err != nil {
		return err
	}
	h, ok := l.generation(keep)
	if !ok {
		return s.place.refuse(ErrMoved, "generation %d is not here", keep)
	}
	return s.beside(h, next, contents)
}

// fresh refuses the epoch of a master that was replaced.
func (s sealed) fresh(l look, next Stamp) error {
	for _, h := range l.headers {
		if h.Epoch > next.Epoch {
			return s.place.refuse(ErrStale, "%v is on the disk, this is epoch %d", h.Stamp, next.Epoch)
		}
	}
	return nil
}

// beside writes a state without touching another one: below its contents if
// there is room, else at the end. A volume that was extended has more room.
func (s sealed) beside(kept found, next Stamp, contents []byte) error {
	need := roundUp(int64(len(contents)))
	at := s.contentsAt()
	if at+need > kept.offset {
		at = (s.to - need) &^ (block - 1)
	}
	if at < s.contentsAt() || at < kept.offset+roundUp(kept.length) && kept.offset < at+need {
		return s.noRoom(need)
	}
	return s.write(1-kept.block, at, next, contents)
}

// write writes contents, then the header, and reads both back.
func (s sealed) write(i int, at int64, next Stamp, contents []byte) error {
	need := roundUp(int64(len(contents)))
	if at+need > s.to || need > maxContents {
		return s.noRoom(need)
	}
	if need > 0 {
		if err := writeFull(s.dev, at, contents); err != nil {
			return err
		}
	}
	h := header{Stamp: next, offset: at, length: int64(len(contents)), crc: castagnoli(contents), copy: uint32(i)}
	where := s.from + int64(i)*block
	both, err := s.seal(where, i, h)
	if err != nil {
		return err
	}
	got, err := readFull(s.dev, where, block)
	if err != nil {
		return err
	}
	back, err := s.contents(found{h, i})
	if err != nil {
		return err
	}
	if !bytes.Equal(got, both) || !bytes.Equal(back, contents) {
		return s.place.refuse(ErrMoved, "something else was written over %v", next)
	}
	return nil
}

// seal writes a header block, and returns what it wrote. Where a crash has left one
// of its two sectors unreadable, that one is written first: a crash at a write that
// changes both could take the other one.
func (s sealed) seal(where int64, i int, h header) ([]byte, error) {
	old, err := readFull(s.dev, where, block)
	if err != nil {
		return nil, err
	}
	both := directio.Buffer(block)
	first, last := both[:sector], both[block-sector:]
	copy(first, s.place.encodeHeader(h))
	copy(last, first)
	oldFirst, oldLast := old[:sector], old[block-sector:]
	switch ok := s.readable(oldFirst, i); {
	case ok == s.readable(oldLast, i):
	case ok:
		err = writeFull(s.dev, where, slices.Concat(oldFirst, both[sector:]))
	default:
		err = writeFull(s.dev, where, slices.Concat(both[:block-sector], oldLast))
	}
	if err != nil {
		return nil, err
	}
	return both, writeFull(s.dev, where, both)
}

// readable says that a sector of header block i is a header, wherever its contents
// are, or still empty.
func (s sealed) readable(b []byte, i int) bool {
	h, reason := s.place.decodeHeader(b)
	if reason == nil {
		reason = s.fits(h, i)
	}
	return reason == nil || errors.Is(reason, ErrEmpty) || errors.Is(reason, ErrShort)
}
