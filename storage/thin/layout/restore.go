// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"errors"

	"github.com/google/uuid"
)

// RestoreMap writes a map over what ReadMap refuses, for those who found out what it
// has to say: into both copies, under an epoch above all that are there. A copy
// that can be read is overwritten last. What is not the cluster's own is refused.
func RestoreMap(dev Device, cluster uuid.UUID, epoch uint64, m Map) (Stamp, error) {
	s := theMap(dev, cluster)
	if err := m.Check(); err != nil {
		return Stamp{}, s.place.refuse(ErrInvalid, "%w", err)
	}
	l, err := s.look()
	if err != nil {
		return Stamp{}, err
	}
	if err := s.foreign(l, false); err != nil {
		return Stamp{}, err
	}
	first, second := Stamp{epoch, 1}, Stamp{epoch, 2}
	if err := s.fresh(l, first); err != nil {
		return Stamp{}, err
	}
	contents := m.encode()
	if kept, ok := s.whole(l); ok {
		err = s.beside(kept, first, contents)
	} else {
		err = s.write(0, s.contentsAt(), first, contents)
	}
	if err != nil {
		return Stamp{}, err
	}
	if l, err = s.look(); err != nil {
		return Stamp{}, err
	}
	h, ok := l.newest()
	if !ok || h.Stamp != first {
		return Stamp{}, s.place.refuse(ErrMoved, "%v is not on the disk", first)
	}
	return second, s.beside(h, second, contents)
}

// whole is the newest state whose contents can be read.
func (s sealed) whole(l look) (found, bool) {
	for {
		h, ok := l.newest()
		if !ok {
			return found{}, false
		}
		if _, err := s.contents(h); err == nil {
			return h, true
		}
		l.headers = without(l.headers, h.Stamp)
	}
}

// MappingCopy is what one of the two copies of a mapping holds.
type MappingCopy struct {
	Mapping Mapping
	Stamp   Stamp
}

// MappingCopies reads the mappings that can be read, though nobody knows which one
// counts, the newest first. A volume that is empty, not of this cluster, or of which
// nothing can be read, is an error.
func MappingCopies(dev Device, cluster, volume uuid.UUID) ([]MappingCopy, error) {
	s := mapping(dev, cluster, volume)
	l, err := s.look()
	if err != nil {
		return nil, err
	}
	if err := s.foreign(l, false); err != nil {
		return nil, err
	}
	var copies []MappingCopy
	var reasons []error
	for {
		h, ok := l.newest()
		if !ok {
			break
		}
		contents, err := s.contents(h)
		if err == nil {
			var m Mapping
			if m, err = decodeMapping(contents); err == nil {
				copies = append(copies, MappingCopy{m, h.Stamp})
			}
		}
		reasons = append(reasons, err)
		l.headers = without(l.headers, h.Stamp)
	}
	switch {
	case len(reasons) == 0 && errors.Is(l.reasons[0], ErrEmpty) && errors.Is(l.reasons[1], ErrEmpty):
		return nil, s.place.refuse(ErrEmpty, "both copies")
	case len(copies) == 0:
		return nil, s.place.refuse(ErrDamaged, "both copies: %w", errors.Join(reasons...))
	}
	return copies, nil
}
