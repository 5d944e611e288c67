// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
)

// Create adds an empty volume, offline, of which a mapping of generation 1 is
// stored. One of this UUID, name and size that is there keeps its number.
func Create(m layout.Map, id uuid.UUID, name string, size uint64) (layout.Map, uint32, error) {
	for _, v := range m.Volumes {
		if v.UUID == id && v.Name == name && v.Size == size {
			return m, v.Number, nil
		}
	}
	m, number, err := add(m, layout.VolumeRecord{UUID: id, Name: name, Size: size})
	return m, number, err
}

// add gives a volume its number, for ever.
func add(m layout.Map, v layout.VolumeRecord) (layout.Map, uint32, error) {
	if taken := slices.ContainsFunc(m.Volumes, func(o layout.VolumeRecord) bool { return o.UUID == v.UUID || o.Name == v.Name }); taken {
		return m, 0, failure.Hint(failure.New(failure.Conflict, "volume %s: its name or UUID is taken", v.Name), "see `diskhook thin status`")
	}
	if !layout.ValidName(v.Name) || v.Size == 0 || v.Size%512 != 0 {
		return m, 0, failure.New(failure.Usage, "volume %q of %d bytes: a name, and whole sectors of 512 bytes", v.Name, v.Size)
	}
	if m.NextVolume > layout.MaxVolume {
		err := failure.New(failure.NoSpace, "the cluster has used all %d numbers of volumes", layout.MaxVolume)
		return m, 0, failure.Hint(err, "make another cluster and move volumes to it with `diskhook thin export` and `diskhook thin import`")
	}
	m = edit(m)
	v.Number, v.State, v.Generation = m.NextVolume, layout.Offline, 1
	m.Volumes = append(m.Volumes, v)
	m.NextVolume++
	return m, v.Number, nil
}

// BeginAttach takes an offline volume to a host: what is private in its stored
// mapping becomes the host's. The host may write to it once its metadata have it,
// with the generation that the map has now.
func BeginAttach(m layout.Map, number, to uint32, stored layout.Mapping) (layout.Map, error) {
	if _, err := host(&m, to); err != nil {
		return m, err
	}
	if v, err := volume(&m, number); err == nil && v.State.On() && v.State != layout.Detaching && v.Host == to {
		return m, nil // done before
	}
	m = edit(m)
	v, err := in(&m, number, layout.Offline)
	if err != nil {
		return m, err
	}
	private := stored.Private()
	if err := within(m, "volume "+v.Name, private, ofVolume(number)); err != nil {
		return m, err
	}
	v.State, v.Host, v.Generation = layout.Attaching, to, v.Generation+1
	// All of it goes along: nobody else could ever free what the mapping lacks.
	m.Give(m.Owned(ofVolume(number)), ofHost(to))
	return m, nil
}

// FinishAttach says that the host has the volume.
func FinishAttach(m layout.Map, number, at uint32) (layout.Map, error) {
	return turn(m, number, at, layout.Attached, layout.Attaching)
}

// BeginDetach says that the host is about to give the volume back.
func BeginDetach(m layout.Map, number, at uint32) (layout.Map, error) {
	return turn(m, number, at, layout.Detaching, layout.Attached)
}

func turn(m layout.Map, number, at uint32, to, from layout.VolumeState) (layout.Map, error) {
	m = edit(m)
	v, err := in(&m, number, from, to)
	if err != nil {
		return m, err
	}
	if v.Host != at {
		err := failure.New(failure.Conflict, "volume %s: it is at %s", v.Name, hostName(m, v.Host))
		return m, failure.Hint(err, "see `diskhook thin status`")
	}
	v.State = to
	return m, nil
}

// FinishDetach takes a volume offline. stored is its mapping as it was written to
// UUID.thin with the next generation; what is private in it is the volume's from
// now on. suspect says that what the host wrote last may be lost.
func FinishDetach(m layout.Map, number, at uint32, stored layout.Mapping, suspect bool) (layout.Map, error) {
	m = edit(m)
	v, err := in(&m, number, layout.Attaching, layout.Attached, layout.Detaching)
	if err != nil {
		return m, err
	}
	h, err := anyHost(&m, v.Host)
	if err != nil {
		return m, err
	}
	if v.Host != at || v.State == layout.Attached && h.State == layout.Member {
		err := failure.New(failure.Conflict, "volume %s: it is attached to host %s", v.Name, h.Name)
		return m, failure.Hint(err, "run `diskhook thin detach %s` on %s", v.Name, h.Name)
	}
	if err := within(m, "volume "+v.Name, stored.Private(), ofHost(at)); err != nil {
		return m, err
	}
	for _, b := range v.Bases {
		if err := within(m, "volume "+v.Name, stored.Of(b), ofBase(b)); err != nil {
			return m, err
		}
	}
	v.State, v.Host, v.Generation = layout.Offline, 0, v.Generation+1
	if suspect {
		v.State = layout.Suspect
	}
	m.Give(stored.Private(), ofVolume(number))
	return m, nil
}

// Clone makes a volume that has what an offline one has. What was private becomes
// a base of both; the new mapping of each has to be stored, the old volume's with
// the next generation, before the map is committed. base is 0 if nothing was
// private.
func Clone(m layout.Map, of uint32, id uuid.UUID, name string) (next layout.Map, number, base uint32, err error) {
	if _, err := in(&m, of, layout.Offline); err != nil {
		return m, 0, 0, err
	}
	private := m.Owned(ofVolume(of))
	return share(m, of, id, name, private, true)
}

// CloneAttached does the same with a volume that a host has: blocks are what a
// snapshot on that host maps of the volume's own. The snapshot stays parked
// there, so that nobody frees or writes them.
func CloneAttached(m layout.Map, of, at uint32, blocks extent.Set, id uuid.UUID, name string) (next layout.Map, number, base uint32, err error) {
	v, err := in(&m, of, layout.Attached)
	if err == nil && v.Host != at {
		err = failure.New(failure.Conflict, "volume %s: it is at %s", v.Name, hostName(m, v.Host))
	}
	if err == nil {
		err = within(m, "volume "+v.Name, blocks, ofHost(at))
	}
	if err != nil {
		return m, 0, 0, err
	}
	return share(m, of, id, name, blocks, false)
}

func share(m layout.Map, of uint32, id uuid.UUID, name string, blocks extent.Set, rises bool) (layout.Map, uint32, uint32, error) {
	from, err := volume(&m, of)
	if err != nil {
		return m, 0, 0, err
	}
	bases, base := slices.Clone(from.Bases), uint32(0)
	if !blocks.Empty() {
		base = m.NextBase
		bases = append(bases, base)
	}
	next, number, err := add(m, layout.VolumeRecord{UUID: id, Name: name, Size: from.Size, Bases: bases})
	if err != nil {
		return m, 0, 0, err
	}
	v, err := volume(&next, of)
	if err != nil {
		return m, 0, 0, err
	}
	v.Bases = bases
	if rises {
		v.Generation++
	}
	if base != 0 {
		next.NextBase++
		next.Give(blocks, ofBase(base))
	}
	return next, number, base, nil
}

// Delete removes an offline volume: its own blocks become free, and those of
// bases that nobody refers to any more.
func Delete(m layout.Map, number uint32) (layout.Map, error) {
	m = edit(m)
	v, err := in(&m, number, layout.Offline, layout.Suspect)
	if err != nil {
		return m, err
	}
	bases := v.Bases
	m.Volumes = slices.DeleteFunc(m.Volumes, func(v layout.VolumeRecord) bool { return v.Number == number })
	m.Give(m.Owned(ofVolume(number)), free())
	for _, b := range bases {
		if !slices.ContainsFunc(m.Volumes, func(v layout.VolumeRecord) bool { return slices.Contains(v.Bases, b) }) {
			m.Give(m.Owned(ofBase(b)), free())
		}
	}
	return m, nil
}

// Collect frees what none of a base's referrers maps any more. stored is the
// mapping that counts of each of them, attached ones too: those can lose
// references meanwhile and never gain one. Volumes without a reference left drop
// the base.
func Collect(m layout.Map, base uint32, stored map[uint32]layout.Mapping) (layout.Map, extent.Set, error) {
	m = edit(m)
	var live extent.Set
	for i, v := range m.Volumes {
		if !slices.Contains(v.Bases, base) {
			continue
		}
		mapping, ok := stored[v.Number]
		if !ok {
			return m, nil, failure.New(failure.Precondition, "base %d: the mapping of volume %s is needed", base, v.Name)
		}
		// A volume that was cloned while attached has a stored mapping from before
		// the base: it may map all of it.
		if v.State.On() && mapping.Of(base).Empty() {
			return m, nil, nil
		}
		part := mapping.Of(base)
		if part.Empty() {
			m.Volumes[i].Bases = slices.DeleteFunc(slices.Clone(v.Bases), func(b uint32) bool { return b == base })
		}
		live = live.Union(part)
	}
	dead := m.Owned(ofBase(base)).Minus(live)
	m.Give(dead, free())
	return m, dead, nil
}

// Resize changes the size of a volume, which only grows.
func Resize(m layout.Map, number uint32, size uint64) (layout.Map, error) {
	m = edit(m)
	v, err := volume(&m, number)
	if err != nil {
		return m, err
	}
	if size < v.Size || size%512 != 0 {
		return m, failure.New(failure.Usage, "volume %s: its %d bytes cannot become %d: it only grows, by whole sectors of 512 bytes", v.Name, v.Size, size)
	}
	v.Size = size
	return m, nil
}
