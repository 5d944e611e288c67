// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"github.com/google/uuid"

	"diskhook/storage/thin/extent"
)

// The numbers by which dm-thin knows devices. They have 24 bits.
const (
	// MaxVolume is the highest number of a volume. The numbers above it are each
	// host's own: balloons and hidden snapshots.
	MaxVolume = FirstLocal - 1
	// FirstLocal is the lowest number that a host may use as it likes.
	FirstLocal = 0xFF0000
	// MaxDevice is the highest number that dm-thin takes.
	MaxDevice = 1<<24 - 1
)

// OwnerKind says who decides about a block.
type OwnerKind uint32

// The owners.
const (
	// Free blocks are the master's to hand out.
	Free OwnerKind = 1
	// OfHost blocks are under one host's authority: it allocates, writes and
	// frees them without telling anybody.
	OfHost OwnerKind = 2
	// OfVolume blocks hold what is only in one volume, which is offline.
	OfVolume OwnerKind = 3
	// OfBase blocks are shared by volumes, and nobody ever writes to them.
	OfBase OwnerKind = 4
	// OfLabel is the first block alone.
	OfLabel OwnerKind = 5
)

// Owner is one owner. Number is the host's, volume's or base's, else 0.
type Owner struct {
	Kind   OwnerKind
	Number uint32
}

// Run is a run of data blocks that have one owner.
type Run struct {
	extent.Extent
	Owner
}

// HostState is what the cluster knows of a host.
type HostState uint8

// The states of hosts.
const (
	// Member hosts own blocks and attach volumes.
	Member HostState = 1
	// Fenced hosts cannot write any more; their volumes are to be recovered.
	Fenced HostState = 2
	// Recovered hosts own nothing and have to join again under a new number.
	Recovered HostState = 3
)

// HostRecord is a host.
type HostRecord struct {
	Number   uint32 // never used again
	UUID     uuid.UUID
	Name     string
	State    HostState
	Image    uint64 // generation of its metadata, as it told the master last
	Sequence uint64 // of its last request that was committed
	Evidence string // why it is held for fenced
}

// VolumeState is where a volume's mapping is.
type VolumeState uint8

// The states of volumes.
const (
	Offline   VolumeState = 1 // in UUID.thin
	Attaching VolumeState = 2 // in the host's metadata once that carries the generation, else in UUID.thin
	Attached  VolumeState = 3 // in the host's metadata
	Detaching VolumeState = 4 // as Attaching
	Suspect   VolumeState = 5 // offline, and what its host wrote last may be lost
)

// String is what people call a host's state.
func (s HostState) String() string {
	return map[HostState]string{Member: "member", Fenced: "fenced", Recovered: "recovered"}[s]
}

// String is what people call a volume's state.
func (s VolumeState) String() string {
	return map[VolumeState]string{
		Offline: "offline", Attaching: "attaching", Attached: "attached", Detaching: "detaching", Suspect: "suspect",
	}[s]
}

// On says whether a volume in this state is at a host.
func (s VolumeState) On() bool { return s == Attaching || s == Attached || s == Detaching }

// VolumeRecord is a thin volume.
type VolumeRecord struct {
	Number     uint32 // by which dm-thin knows it; 1 to MaxVolume, never used again
	UUID       uuid.UUID
	Name       string
	Size       uint64 // bytes
	State      VolumeState
	Host       uint32   // where it is; 0 while offline
	Generation uint64   // rises with each attach and detach
	Bases      []uint32 // shared blocks that it may map, ascending
}

// Stored is the generation of the mapping in UUID.thin that counts: at a host the
// one that it came from.
func (v VolumeRecord) Stored() uint64 {
	if v.State.On() {
		return v.Generation - 1
	}
	return v.Generation
}

// Map is the master's map of the cluster.
type Map struct {
	Geometry
	// Claim is the claim by which somebody is the master, drawn anew with each: an
	// epoch alone does not say who has it.
	Claim uuid.UUID
	// The lowest numbers that were never used.
	NextHost, NextVolume, NextBase uint32

	Hosts   []HostRecord   // ascending by number
	Volumes []VolumeRecord // ascending by number
	Owners  []Run          // ascending, every block once, no two neighbours of one owner
}

// NewMap is the map of a cluster that has nothing yet. It has the label's block,
// and all others are free.
func NewMap(g Geometry) Map {
	return Map{Geometry: g, NextHost: 1, NextVolume: 1, NextBase: 1, Owners: []Run{
		{LabelBlock, Owner{Kind: OfLabel}},
		{extent.Extent{Start: LabelBlock.End(), Length: g.Blocks - LabelBlock.End()}, Owner{Kind: Free}},
	}}
}

// Owned is the set of blocks of an owner.
func (m Map) Owned(o Owner) extent.Set {
	var runs []extent.Extent
	for _, r := range m.Owners {
		if r.Owner == o {
			runs = append(runs, r.Extent)
		}
	}
	return extent.Of(runs...)
}

// Give makes o the owner of a set of blocks, whoever had them. It changes m's
// own slice of owners only.
func (m *Map) Give(blocks extent.Set, o Owner) {
	var runs []Run
	push := func(e extent.Extent, owner Owner) {
		if last := len(runs) - 1; last >= 0 && runs[last].Owner == owner && runs[last].End() == e.Start {
			runs[last].Length += e.Length
			return
		}
		runs = append(runs, Run{e, owner})
	}
	for _, r := range m.Owners {
		whole := extent.Of(r.Extent)
		given, kept := whole.Intersect(blocks), whole.Minus(blocks)
		for len(given) > 0 || len(kept) > 0 {
			if len(kept) == 0 || len(given) > 0 && given[0].Start < kept[0].Start {
				push(given[0], o)
				given = given[1:]
			} else {
				push(kept[0], r.Owner)
				kept = kept[1:]
			}
		}
	}
	m.Owners = runs
}
