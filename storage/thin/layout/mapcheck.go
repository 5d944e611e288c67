// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/google/uuid"
)

// maxEvidence bounds what is kept of why a host is held for fenced, in bytes.
const maxEvidence = 256

// Check says which rule a map breaks that can be told from the map alone: every
// block has one owner, every owner and every host of a volume exists, numbers are
// in range, unique and below the next, and so are UUIDs and names.
func (m Map) Check() error {
	if err := m.Geometry.check(); err != nil {
		return err
	}
	hosts, err := m.checkHosts()
	if err != nil {
		return err
	}
	volumes, err := m.checkVolumes(hosts)
	if err != nil {
		return err
	}
	return m.checkOwners(hosts, volumes)
}

// once finds what appears twice.
type once map[any]bool

func (o once) again(v any) bool {
	was := o[v]
	o[v] = true
	return was
}

func (m Map) checkHosts() (map[uint32]HostRecord, error) {
	known, seen := map[uint32]HostRecord{}, once{}
	var last uint32
	for _, h := range m.Hosts {
		switch {
		case h.Number <= last || h.Number >= m.NextHost:
			return nil, fmt.Errorf("host number %d after %d, the next would be %d", h.Number, last, m.NextHost)
		case h.UUID == uuid.Nil || h.State != Recovered && (seen.again(h.UUID) || seen.again(h.Name)):
			return nil, fmt.Errorf("host %d: uuid %s or name %q is there twice", h.Number, h.UUID, h.Name)
		case !ValidName(h.Name):
			return nil, fmt.Errorf("host %d: name %q", h.Number, h.Name)
		case h.State < Member || h.State > Recovered:
			return nil, fmt.Errorf("host %d: state %d", h.Number, h.State)
		case len(h.Evidence) > maxEvidence || !utf8.ValidString(h.Evidence) || (h.Evidence == "") != (h.State == Member):
			return nil, fmt.Errorf("host %d: state %d with evidence %q", h.Number, h.State, h.Evidence)
		}
		last, known[h.Number] = h.Number, h
	}
	return known, nil
}

func (m Map) checkVolumes(hosts map[uint32]HostRecord) (map[uint32]VolumeRecord, error) {
	known, seen := map[uint32]VolumeRecord{}, once{}
	if m.NextVolume > MaxVolume+1 {
		return nil, fmt.Errorf("the next volume's number would be %d, the highest is %d", m.NextVolume, MaxVolume)
	}
	var last uint32
	for _, v := range m.Volumes {
		at, there := hosts[v.Host]
		switch {
		case v.Number > MaxVolume:
			return nil, fmt.Errorf("volume number %d, the highest is %d", v.Number, MaxVolume)
		case v.Number <= last || v.Number >= m.NextVolume:
			return nil, fmt.Errorf("volume number %d after %d, the next would be %d", v.Number, last, m.NextVolume)
		case v.UUID == uuid.Nil || seen.again(v.UUID) || seen.again(v.Name):
			return nil, fmt.Errorf("volume %d: uuid %s or name %q is there twice", v.Number, v.UUID, v.Name)
		case !ValidName(v.Name):
			return nil, fmt.Errorf("volume %d: name %q", v.Number, v.Name)
		case v.Size == 0 || v.Size%sector != 0 || v.Size > 1<<63-1:
			return nil, fmt.Errorf("volume %d: size %d", v.Number, v.Size)
		case v.State < Offline || v.State > Suspect || v.Generation == 0 || v.Stored() == 0:
			return nil, fmt.Errorf("volume %d: state %d generation %d", v.Number, v.State, v.Generation)
		case v.State.On() != (v.Host != 0) || v.Host != 0 && (!there || at.State == Recovered):
			return nil, fmt.Errorf("volume %d: state %d at host %d", v.Number, v.State, v.Host)
		}
		if err := m.checkBases(v); err != nil {
			return nil, err
		}
		last, known[v.Number] = v.Number, v
	}
	return known, nil
}

func (m Map) checkBases(v VolumeRecord) error {
	var last uint32
	for _, b := range v.Bases {
		if b <= last || b >= m.NextBase {
			return fmt.Errorf("volume %d: base %d after %d, the next would be %d", v.Number, b, last, m.NextBase)
		}
		last = b
	}
	return nil
}

func (m Map) checkOwners(hosts map[uint32]HostRecord, volumes map[uint32]VolumeRecord) error {
	referred := map[uint32]bool{}
	for _, v := range m.Volumes {
		for _, b := range v.Bases {
			referred[b] = true
		}
	}
	var at uint64
	for i, r := range m.Owners {
		if r.Start != at || !r.Fits(m.Blocks) || i > 0 && r.Owner == m.Owners[i-1].Owner {
			return fmt.Errorf("blocks %d+%d follow block %d", r.Start, r.Length, at)
		}
		at = r.End()
		host, isHost := hosts[r.Number]
		volume, isVolume := volumes[r.Number]
		if !map[OwnerKind]bool{
			Free:     r.Number == 0,
			OfHost:   isHost && host.State != Recovered,
			OfVolume: isVolume && !volume.State.On(),
			OfBase:   referred[r.Number],
			OfLabel:  r.Number == 0 && r.Extent == LabelBlock,
		}[r.Kind] {
			return fmt.Errorf("blocks %d+%d: owner %d of kind %d does not exist or cannot own them", r.Start, r.Length, r.Number, r.Kind)
		}
	}
	if at != m.Blocks || !slices.ContainsFunc(m.Owners, func(r Run) bool { return r.Kind == OfLabel }) {
		return fmt.Errorf("owners of %d blocks and the label, of %d blocks", at, m.Blocks)
	}
	return nil
}
