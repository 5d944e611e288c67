// SPDX-License-Identifier: Apache-2.0

// Package ledger is what the master of a thin cluster does to the map: it gives
// blocks to hosts and takes them back, and moves volumes between hosts and their
// stored mappings.
//
// Each function makes the next map from a map and changes nothing else; who calls
// it commits the result (layout.CommitMap), which is the point at which the step
// counts. Nothing is read from a disk here: what a host or a stored mapping has
// to say is handed in, and believed only as far as the map allows it. Every
// function is idempotent in this sense: done twice it is refused, or it leaves
// the map as it is, and never gives a block to two owners.
//
// A volume goes through these states:
//
//	Offline → BeginAttach → Attaching → FinishAttach → Attached → BeginDetach → Detaching → FinishDetach → Offline
//
// FinishDetach also ends an attach that failed, and, once the host is fenced,
// whatever state its volumes were in.
package ledger

import (
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
)

// edit is a map that may be changed.
func edit(m layout.Map) layout.Map {
	m.Hosts, m.Volumes = slices.Clone(m.Hosts), slices.Clone(m.Volumes)
	return m
}

// owner of a kind.
func free() layout.Owner             { return layout.Owner{Kind: layout.Free} }
func ofHost(n uint32) layout.Owner   { return layout.Owner{Kind: layout.OfHost, Number: n} }
func ofVolume(n uint32) layout.Owner { return layout.Owner{Kind: layout.OfVolume, Number: n} }
func ofBase(n uint32) layout.Owner   { return layout.Owner{Kind: layout.OfBase, Number: n} }

// host finds a host that is a member.
func host(m *layout.Map, number uint32) (*layout.HostRecord, error) {
	h, err := anyHost(m, number)
	if err != nil {
		return nil, err
	}
	if h.State != layout.Member {
		err := failure.New(failure.Conflict, "host %s: it is no member any more: %s", h.Name, h.Evidence)
		return nil, failure.Hint(err, "run `diskhook thin stop` on it, or reboot it, then `diskhook thin init-host --rejoin %s` on the master", h.Name)
	}
	return h, nil
}

func anyHost(m *layout.Map, number uint32) (*layout.HostRecord, error) {
	i := slices.IndexFunc(m.Hosts, func(h layout.HostRecord) bool { return h.Number == number })
	if i < 0 {
		return nil, failure.Hint(failure.New(failure.NotFound, "host %d: the cluster has none", number), "run `diskhook thin init-host` on the master with its name")
	}
	return &m.Hosts[i], nil
}

// hostName is for messages.
func hostName(m layout.Map, number uint32) string {
	if h, err := anyHost(&m, number); err == nil {
		return "host " + h.Name
	}
	return "no host"
}

func volume(m *layout.Map, number uint32) (*layout.VolumeRecord, error) {
	i := slices.IndexFunc(m.Volumes, func(v layout.VolumeRecord) bool { return v.Number == number })
	if i < 0 {
		return nil, failure.Hint(failure.New(failure.NotFound, "volume %d: the cluster has none", number), "see `diskhook thin status`")
	}
	return &m.Volumes[i], nil
}

// in finds a volume that is in one of some states.
func in(m *layout.Map, number uint32, states ...layout.VolumeState) (*layout.VolumeRecord, error) {
	v, err := volume(m, number)
	if err != nil || slices.Contains(states, v.State) {
		return v, err
	}
	if at, err := anyHost(m, v.Host); v.State.On() && err == nil {
		err = failure.New(failure.Conflict, "volume %s: it is %s, at host %s", v.Name, v.State, at.Name)
		return nil, failure.Hint(err, "run `diskhook thin detach %s` on %s; if that host is lost, have it fenced, then run `diskhook thin recover %s` on the master", v.Name, at.Name, at.Name)
	}
	err = failure.New(failure.Conflict, "volume %s: it is %s", v.Name, v.State)
	return nil, failure.Hint(err, "see `diskhook thin status`")
}

// within wants every block of a set to have an owner.
func within(m layout.Map, what string, blocks extent.Set, o layout.Owner) error {
	if rest := blocks.Minus(m.Owned(o)); !rest.Empty() {
		err := failure.New(failure.Problems, "%s: blocks %v are not its own", what, rest)
		return failure.Hint(err, "run `diskhook thin check`")
	}
	return nil
}

// Join makes a host a member and returns its number. One that is a member already
// keeps it; one that was recovered gets a new one.
func Join(m layout.Map, id uuid.UUID, name string) (layout.Map, uint32, error) {
	for _, h := range m.Hosts {
		switch {
		case h.State == layout.Recovered:
		case h.UUID == id && h.Name == name && h.State == layout.Member:
			return m, h.Number, nil
		case h.UUID == id && h.Name == name:
			err := failure.New(failure.Conflict, "host %s: it is %s, and has not been recovered", name, h.State)
			return m, 0, failure.Hint(err, "run `diskhook thin recover %s` on the master, then `diskhook thin init-host --rejoin %s`", name, name)
		case h.UUID == id || h.Name == name:
			err := failure.New(failure.Conflict, "host %s: host %s, a %s of the cluster, has its name or UUID", name, h.Name, h.State)
			return m, 0, failure.Hint(err, "see `diskhook thin status`; `diskhook thin drain` on that host and `diskhook thin remove-host %s` on the master end its part", h.Name)
		}
	}
	if !layout.ValidName(name) {
		return m, 0, failure.New(failure.Usage, "host %q: no name for one", name)
	}
	m = edit(m)
	m.Hosts = append(m.Hosts, layout.HostRecord{Number: m.NextHost, UUID: id, Name: name, State: layout.Member})
	m.NextHost++
	return m, m.NextHost - 1, nil
}

// Grant gives a host so many free blocks, in as few runs as there are, and
// returns them. Fewer than wanted are a failure.NoSpace.
func Grant(m layout.Map, to uint32, blocks uint64) (layout.Map, extent.Set, error) {
	if _, err := host(&m, to); err != nil {
		return m, nil, err
	}
	have := m.Owned(free())
	if have.Blocks() < blocks {
		err := failure.New(failure.NoSpace, "the cluster has %d free blocks, %d were asked for", have.Blocks(), blocks)
		return m, nil, failure.Hint(err, "run `diskhook thin free` on a host that has slack, `diskhook thin gc`, or extend the LUN and run `diskhook thin grow`")
	}
	given := have.First(blocks)
	m = edit(m)
	m.Give(given, ofHost(to))
	return m, given, nil
}

// Answer notes that a request of a host is being done, by its sequence. again says
// that it was done already: the map stays, and only the reply is to be written. A
// sequence below that is a failure.Conflict.
func Answer(m layout.Map, from uint32, sequence uint64) (next layout.Map, again bool, err error) {
	m = edit(m)
	h, err := host(&m, from)
	if err != nil || h.Sequence == sequence {
		return m, err == nil, err
	}
	if sequence < h.Sequence {
		err := failure.New(failure.Conflict, "host %s: request %d comes after request %d was done", h.Name, sequence, h.Sequence)
		return m, false, failure.Hint(err, "run the verb again on %s", h.Name)
	}
	h.Sequence = sequence
	return m, false, nil
}

// Usable is the set of blocks that a host may release from its disk 0. Volumes
// that are on their way to it have their private blocks among its own since
// BeginAttach, but as long as its metadata do not have such a volume only disk 0
// keeps them from being allocated. coming are the stored mappings of these: of
// all volumes that are Attaching at the host and not in its metadata.
func Usable(m layout.Map, number uint32, coming ...layout.Mapping) extent.Set {
	own := m.Owned(ofHost(number))
	for _, c := range coming {
		own = own.Minus(c.Private())
	}
	return own
}

// Return takes blocks back that a host withholds from its own pool. Those that are
// free already were taken before.
func Return(m layout.Map, from uint32, blocks extent.Set) (layout.Map, error) {
	h, err := host(&m, from)
	if err != nil {
		return m, err
	}
	blocks = blocks.Minus(m.Owned(free()))
	if err := within(m, "host "+h.Name, blocks, ofHost(from)); err != nil {
		return m, err
	}
	m = edit(m)
	m.Give(blocks, free())
	return m, nil
}

// Grow adds blocks at the end, free. Every host's metadata have to withhold them
// before; one that does not stands in the way.
func Grow(m layout.Map, blocks uint64, withholds func(host uint32) bool) (layout.Map, error) {
	if blocks < m.Blocks {
		return m, failure.New(failure.Usage, "the cluster has %d blocks and cannot have %d", m.Blocks, blocks)
	}
	for _, h := range m.Hosts {
		if h.State != layout.Recovered && !withholds(h.Number) {
			err := failure.New(failure.Precondition, "host %s: its metadata do not know the new blocks", h.Name)
			return m, failure.Hint(err, "run `diskhook thin rebuild` on it, then `diskhook thin grow` again")
		}
	}
	if blocks == m.Blocks {
		return m, nil
	}
	m = edit(m)
	added := extent.Extent{Start: m.Blocks, Length: blocks - m.Blocks}
	m.Blocks = blocks
	m.Owners = append(slices.Clone(m.Owners), layout.Run{Extent: added})
	m.Give(extent.Of(added), free())
	return m, nil
}
