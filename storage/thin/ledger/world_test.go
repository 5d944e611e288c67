// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"maps"
	"slices"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

const (
	blocks     = 60
	blockSize  = 64 << 10
	perVolume  = 6 // blocks
	snapBefore = 1 // snapshot time of a device that was attached
)

// at is where a virtual block is.
type at struct {
	block uint64
	time  uint32
}

// thin is a device in the kernel of a host.
type thin struct {
	generation uint64
	snap       uint32
	maps       map[uint64]at
}

// kernel is a host's pool, in which every write is committed at once.
type kernel struct {
	time    uint32
	devices map[uint32]*thin
	local   uint32 // next number of its own
}

// world is a cluster that can stop between any two commits.
type world struct {
	*rapid.T
	m       layout.Map
	stored  map[uint32]map[uint64]layout.Mapping // by volume and generation
	kernels map[uint32]*kernel
	data    [blocks]int               // stamp of the last write to each block
	wrote   map[uint32]map[uint64]int // by volume and virtual block: stamps that guests were told of
	stamp   int
	names   int
}

func newWorld(t *rapid.T) *world {
	return &world{
		T: t, m: layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks}), stored: map[uint32]map[uint64]layout.Mapping{},
		kernels: map[uint32]*kernel{}, wrote: map[uint32]map[uint64]int{},
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%v", err)
	}
}

// commit makes a map count.
func (w *world) commit(m layout.Map, err error) {
	w.Helper()
	w.must(err)
	w.must(m.Check())
	w.m = m
}

// stops says whether whoever works dies now.
func (w *world) stops() bool { return rapid.IntRange(0, 3).Draw(w.T, "stops") == 0 }

func (w *world) members() []uint32 {
	var numbers []uint32
	for _, h := range w.m.Hosts {
		if h.State == layout.Member {
			numbers = append(numbers, h.Number)
		}
	}
	return numbers
}

// one picks a volume in one of some states.
func (w *world) one(states ...layout.VolumeState) (layout.VolumeRecord, bool) {
	var fit []layout.VolumeRecord
	for _, v := range w.m.Volumes {
		if slices.Contains(states, v.State) {
			fit = append(fit, v)
		}
	}
	if len(fit) == 0 {
		return layout.VolumeRecord{}, false
	}
	return rapid.SampledFrom(fit).Draw(w.T, "volume"), true
}

func (w *world) host() (uint32, bool) {
	numbers := w.members()
	if len(numbers) == 0 {
		return 0, false
	}
	return rapid.SampledFrom(numbers).Draw(w.T, "host"), true
}

func (w *world) owned(kind layout.OwnerKind, number uint32) extent.Set {
	return w.m.Owned(layout.Owner{Kind: kind, Number: number})
}

// identity is a disk 0 that withholds a set.
func identity(withheld extent.Set) *thin {
	d := &thin{maps: map[uint64]at{}}
	for b := range uint64(blocks) {
		if withheld.Contains(b) {
			d.maps[b] = at{b, 0}
		}
	}
	return d
}

// available is the lowest block that a kernel can allocate.
func (k *kernel) available() (uint64, bool) {
	var used [blocks]bool
	for _, d := range k.devices {
		for _, a := range d.maps {
			used[a.block] = true
		}
	}
	for b := range uint64(blocks) {
		if !used[b] {
			return b, true
		}
	}
	return 0, false
}

// mapping is what a device maps, with the base of each block as the map says.
func (w *world) mapping(v layout.VolumeRecord, d *thin) layout.Mapping {
	m := layout.Mapping{Number: v.Number, BlockSize: blockSize, Size: v.Size}
	for _, virtual := range slices.Sorted(maps.Keys(d.maps)) {
		r := layout.MappingRun{Virtual: virtual, Physical: d.maps[virtual].block, Length: 1}
		for _, b := range v.Bases {
			if w.owned(layout.OfBase, b).Contains(r.Physical) {
				r.Base = b
			}
		}
		m.Runs = append(m.Runs, r)
	}
	w.must(m.Check())
	return m
}

// active is the device of a volume, if its host has it.
func (w *world) active(v layout.VolumeRecord) *thin {
	if k := w.kernels[v.Host]; v.State.On() && k != nil && k.devices[v.Number] != nil && k.devices[v.Number].generation == v.Generation {
		return k.devices[v.Number]
	}
	return nil
}

// rebuild gives a host new metadata: disk 0 is what is not the host's, parked
// devices are gone, and what is in with comes along.
func (w *world) rebuild(host uint32, with ...layout.VolumeRecord) {
	own := w.usable(host)
	for _, v := range with {
		own = own.Union(w.stored[v.Number][v.Stored()].Private())
	}
	next := &kernel{time: 1, local: layout.FirstLocal, devices: map[uint32]*thin{0: identity(extent.All(blocks).Minus(own))}}
	load := func(v layout.VolumeRecord, m layout.Mapping) {
		d := &thin{generation: v.Generation, snap: snapBefore, maps: map[uint64]at{}}
		for _, r := range m.Runs {
			a := at{r.Physical, 1}
			if r.Base != 0 {
				a.time = 0
			}
			d.maps[r.Virtual] = a
		}
		next.devices[v.Number] = d
	}
	for _, v := range w.m.Volumes {
		if d := w.active(v); v.Host == host && d != nil {
			load(v, w.mapping(v, d))
		}
	}
	for _, v := range with {
		load(v, w.stored[v.Number][v.Stored()])
	}
	w.kernels[host] = next
}

// usable is what a host may allocate.
func (w *world) usable(host uint32) extent.Set {
	var coming []layout.Mapping
	for _, v := range w.m.Volumes {
		if v.State == layout.Attaching && v.Host == host && w.active(v) == nil {
			coming = append(coming, w.stored[v.Number][v.Stored()])
		}
	}
	return ledger.Usable(w.m, host, coming...)
}

// cluster is the world as the rules see it.
func (w *world) cluster() invariant.Cluster {
	c := invariant.Cluster{Map: w.m, Mappings: map[uint32]layout.Mapping{}, Images: map[uint32]invariant.Image{}}
	for _, v := range w.m.Volumes {
		if m, ok := w.stored[v.Number][v.Stored()]; ok {
			c.Mappings[v.Number] = m
		}
	}
	for host, k := range w.kernels {
		image := invariant.Image{Blocks: blocks, Time: k.time, Devices: map[uint32]invariant.Device{}}
		for number, d := range k.devices {
			out := invariant.Device{Generation: d.generation, SnapTime: d.snap}
			for virtual, a := range d.maps {
				out.Runs = append(out.Runs, invariant.Run{Virtual: virtual, Physical: a.block, Length: 1, Time: a.time})
			}
			image.Devices[number] = out
		}
		c.Images[host] = image
	}
	return c
}

// check wants every rule kept, and every volume to have what was written to it.
func (w *world) check() {
	w.Helper()
	if found := invariant.Check(w.cluster()); len(found) != 0 {
		w.Fatalf("%v", found)
	}
	for _, v := range w.m.Volumes {
		has := map[uint64]uint64{}
		if d := w.active(v); d != nil {
			for virtual, a := range d.maps {
				has[virtual] = a.block
			}
		} else {
			for _, r := range w.stored[v.Number][v.Stored()].Runs {
				has[r.Virtual] = r.Physical
			}
		}
		for virtual := range uint64(perVolume) {
			want, written := w.wrote[v.Number][virtual]
			block, mapped := has[virtual]
			if mapped != written || mapped && w.data[block] != want {
				w.Fatalf("volume %s: block %d is at %d (%t) with %d, want %d (%t)", v.Name, virtual, block, mapped, w.data[block], want, written)
			}
		}
	}
}

// store keeps a mapping of a generation, as UUID.thin would.
func (w *world) store(number uint32, generation uint64, m layout.Mapping) {
	if w.stored[number] == nil {
		w.stored[number] = map[uint64]layout.Mapping{}
	}
	w.stored[number][generation] = m
}

func (w *world) newName() (uuid.UUID, string) {
	w.names++
	var id uuid.UUID
	id[0], id[1] = byte(w.names>>8), byte(w.names)
	id[15] = 1
	return id, "n" + id.String()
}
