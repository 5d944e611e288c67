// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
)

// theMap is where the map lies: the whole of its volume.
func theMap(dev Device, cluster uuid.UUID) sealed {
	return sealed{dev, place{dev.Name(), KindMap, cluster, uuid.Nil}, 0, dev.Size() &^ (block - 1)}
}

// CreateMap writes the first map onto an empty volume, as generation 1.
func CreateMap(dev Device, cluster uuid.UUID, epoch uint64, m Map) (Stamp, error) {
	s := theMap(dev, cluster)
	if err := m.Check(); err != nil {
		return Stamp{}, s.place.refuse(ErrInvalid, "%w", err)
	}
	first := Stamp{epoch, 1}
	return first, s.create(first, m.encode())
}

// ReadMap returns the map that was committed last. Any host may read it at any
// time.
func ReadMap(dev Device, cluster uuid.UUID) (Map, Stamp, error) {
	s := theMap(dev, cluster)
	contents, stamp, err := s.readNewest()
	if err != nil {
		return Map{}, Stamp{}, err
	}
	m, err := decodeMap(contents)
	if err != nil {
		return Map{}, Stamp{}, s.place.refuse(ErrInvalid, "%v: %w", stamp, err)
	}
	return m, stamp, nil
}

// CommitMap writes the map that follows the one of stamp last, for the master of
// an epoch. It refuses a map that breaks a rule (ErrInvalid), an epoch older than
// the disk's (ErrStale) and a disk that has another map by now (ErrMoved). After
// any error the disk has the old or the new map: read it again.
func CommitMap(dev Device, cluster uuid.UUID, last Stamp, epoch uint64, m Map) (Stamp, error) {
	s := theMap(dev, cluster)
	if err := m.Check(); err != nil {
		return last, s.place.refuse(ErrInvalid, "%w", err)
	}
	next := Stamp{epoch, last.Generation + 1}
	if err := s.follow(last, next, m.encode()); err != nil {
		return last, err
	}
	return next, nil
}

// Claim is what a new master does first: it puts its epoch on both copies, so
// that a predecessor which has not noticed is refused, and what it may still have
// been writing lands on the copy that does not count. An epoch that was used
// before is ErrStale, as is one that somebody else claims at the same moment and
// gets; by tells the two apart.
func Claim(dev Device, cluster uuid.UUID, epoch uint64, by uuid.UUID) (Map, Stamp, error) {
	m, stamp, err := ReadMap(dev, cluster)
	if err != nil {
		return Map{}, Stamp{}, err
	}
	if stamp.Epoch >= epoch {
		return Map{}, Stamp{}, theMap(dev, cluster).place.refuse(ErrStale, "%v is on the disk, this is epoch %d", stamp, epoch)
	}
	m.Claim = by
	for range 2 {
		if stamp, err = CommitMap(dev, cluster, stamp, epoch, m); err != nil {
			return Map{}, Stamp{}, err
		}
	}
	if m, stamp, err = ReadMap(dev, cluster); err != nil {
		return Map{}, Stamp{}, err
	}
	if m.Claim != by {
		return Map{}, Stamp{}, theMap(dev, cluster).place.refuse(ErrStale, "%v is on the disk by another claim", stamp)
	}
	return m, stamp, nil
}

// MapCopy is what one of the two copies holds, for those who repair.
type MapCopy struct {
	Map   Map
	Stamp Stamp
	Err   error // why it holds no map
}

// MapCopies reads whatever can be read, though ReadMap may refuse it: the copy
// that is newest first.
func MapCopies(dev Device, cluster uuid.UUID) ([]MapCopy, error) {
	s := theMap(dev, cluster)
	l, err := s.look()
	if err != nil {
		return nil, err
	}
	var copies []MapCopy
	for {
		h, ok := l.newest()
		if !ok {
			break
		}
		c := MapCopy{Stamp: h.Stamp}
		var contents []byte
		if contents, c.Err = s.contents(h); c.Err == nil {
			if c.Map, c.Err = decodeMap(contents); c.Err != nil {
				c.Err = s.place.refuse(ErrInvalid, "%v: %w", h.Stamp, c.Err)
			}
		}
		copies = append(copies, c)
		l.headers = without(l.headers, h.Stamp)
	}
	for i, reason := range l.reasons {
		if reason != nil {
			copies = append(copies, MapCopy{Err: s.place.refuse(reason, "copy %c: %s", 'A'+i, l.details[i])})
		}
	}
	return copies, nil
}

func without(headers []found, stamp Stamp) []found {
	var rest []found
	for _, h := range headers {
		if h.Stamp != stamp {
			rest = append(rest, h)
		}
	}
	return rest
}

// encode is the contents of the map's copies: geometry; claim; NextHost, NextVolume,
// NextBase u32; and each with a u32 count before it
//
//	hosts    u32 number, UUID, name, u8 state, u64 image, u64 sequence, evidence
//	volumes  u32 number, UUID, name, u64 size, u8 state, u32 host, u64 generation, u32 bases
//	owners   u64 length, u32 kind, u32 number; from block 0 on, without gaps
//
// where a name is a u32 length and so many bytes.
func (m Map) encode() []byte {
	var e encoder
	m.Geometry.encode(&e)
	e.id(m.Claim)
	e.u32(m.NextHost)
	e.u32(m.NextVolume)
	e.u32(m.NextBase)
	e.u32(uint32(len(m.Hosts)))
	for _, h := range m.Hosts {
		e.u32(h.Number)
		e.id(h.UUID)
		e.string(h.Name)
		e.u8(uint8(h.State))
		e.u64(h.Image)
		e.u64(h.Sequence)
		e.string(h.Evidence)
	}
	e.u32(uint32(len(m.Volumes)))
	for _, v := range m.Volumes {
		e.u32(v.Number)
		e.id(v.UUID)
		e.string(v.Name)
		e.u64(v.Size)
		e.u8(uint8(v.State))
		e.u32(v.Host)
		e.u64(v.Generation)
		e.u32s(v.Bases)
	}
	e.u32(uint32(len(m.Owners)))
	for _, r := range m.Owners {
		e.u64(r.Length)
		e.u32(uint32(r.Kind))
		e.u32(r.Number)
	}
	return e.b
}

// The fewest bytes of each record, which bound counts before memory is made.
const (
	leastHost   = 4 + 16 + 4 + 1 + 8 + 8 + 4
	leastVolume = 4 + 16 + 4 + 8 + 1 + 4 + 8 + 4
	leastRun    = 8 + 4 + 4
)

func decodeMap(b []byte) (Map, error) {
	d := decoder{b: b}
	m := Map{Geometry: decodeGeometry(&d), Claim: d.id(), NextHost: d.u32(), NextVolume: d.u32(), NextBase: d.u32()}
	for range d.count(leastHost) {
		m.Hosts = append(m.Hosts, HostRecord{
			Number: d.u32(), UUID: d.id(), Name: d.string(), State: HostState(d.u8()), Image: d.u64(), Sequence: d.u64(), Evidence: d.string(),
		})
	}
	for range d.count(leastVolume) {
		m.Volumes = append(m.Volumes, VolumeRecord{
			Number: d.u32(), UUID: d.id(), Name: d.string(), Size: d.u64(), State: VolumeState(d.u8()), Host: d.u32(), Generation: d.u64(), Bases: d.u32s(),
		})
	}
	var at uint64
	for range d.count(leastRun) {
		r := Run{extent.Extent{Start: at, Length: d.u64()}, Owner{OwnerKind(d.u32()), d.u32()}}
		m.Owners = append(m.Owners, r)
		at = r.End() // may wrap, which Check finds
	}
	if !d.whole() {
		return Map{}, failure.New(failure.Problems, "%d bytes are cut off or too many", len(b))
	}
	return m, m.Check()
}
