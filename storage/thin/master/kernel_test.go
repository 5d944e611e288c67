// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"maps"
	"slices"

	"diskhook/storage/directio"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/metadata"
)

// place is where a virtual block is.
type place struct {
	block uint64
	time  uint32
}

// thin is a device in the kernel of a host.
type thin struct {
	generation uint64
	snap       uint32
	maps       map[uint64]place
}

// kernel is a host's pool, in which every write is committed at once.
type kernel struct {
	time    uint32
	devices map[uint32]*thin
	local   uint32 // next number of its own
}

// withholding is a pool that has nothing but a disk 0 with a set of blocks.
func withholding(blocks extent.Set) *kernel {
	reserve := &thin{maps: map[uint64]place{}}
	for _, e := range blocks {
		for b := e.Start; b < e.End(); b++ {
			reserve.maps[b] = place{b, 0}
		}
	}
	return &kernel{time: 1, local: layout.FirstLocal, devices: map[uint32]*thin{0: reserve}}
}

// allocate is the lowest block that it may allocate.
func (k *kernel) allocate(blocks uint64) (uint64, bool) {
	used := map[uint64]bool{}
	for _, d := range k.devices {
		for _, p := range d.maps {
			used[p.block] = true
		}
	}
	for b := range blocks {
		if !used[b] {
			return b, true
		}
	}
	return 0, false
}

// runs are what a device maps, a block each.
func (d *thin) runs() []metadata.Run {
	var runs []metadata.Run
	for _, virtual := range slices.Sorted(maps.Keys(d.maps)) {
		p := d.maps[virtual]
		runs = append(runs, metadata.Run{Origin: virtual, Data: p.block, Length: 1, Time: p.time})
	}
	return runs
}

// image is what it has, for the rules.
func (k *kernel) image(blocks uint64) invariant.Image {
	image := invariant.Image{Blocks: blocks, Time: k.time, Devices: map[uint32]invariant.Device{}}
	for number, d := range k.devices {
		out := invariant.Device{Generation: d.generation, SnapTime: d.snap}
		for _, r := range d.runs() {
			out.Runs = append(out.Runs, invariant.Run{Virtual: r.Origin, Physical: r.Data, Length: 1, Time: r.Time})
		}
		image.Devices[number] = out
	}
	return image
}

// section is a window for metadata, as a device.
type section struct {
	group.Volume
	at int64
}

func (s section) ReadAt(p []byte, off int64) (int, error)  { return s.Volume.ReadAt(p, s.at+off) }
func (s section) WriteAt(p []byte, off int64) (int, error) { return s.Volume.WriteAt(p, s.at+off) }

// active is the window of a host that counts.
func (w *world) active(n byte) (section, layout.HostHeader) {
	w.t.Helper()
	dev := w.disk(layout.Host.Name(id(n)))
	header, _, err := layout.ReadHost(dev, clusterID, id(n))
	w.must(err)
	return section{dev, int64(header.Windows[header.Active].Offset)}, header
}

// commit writes what a host's kernel has into its metadata.
func (w *world) commit(n byte, k *kernel) {
	w.t.Helper()
	to, header := w.active(n)
	b, err := metadata.NewBuilder(to, header.Windows[0].Length/metadata.BlockSize,
		metadata.Superblock{Time: k.time, TransactionID: header.Image, DataBlockSize: blockSize / 512, DataBlocks: header.Blocks})
	w.must(err)
	for _, number := range slices.Sorted(maps.Keys(k.devices)) {
		d := k.devices[number]
		w.must(b.Device(metadata.Device{ID: number, Transaction: d.generation, SnapTime: d.snap}))
		for _, r := range d.runs() {
			w.must(b.Map(r))
		}
	}
	w.must(b.Finish())
}

// rot spoils a host's metadata.
func (w *world) rot(n byte) {
	to, _ := w.active(n)
	b := directio.Buffer(4096)
	if _, err := to.WriteAt(b, 0); err != nil {
		w.t.Fatal(err)
	}
}

// load has a host's kernel get a volume, as a hand-over does.
func (k *kernel) load(v layout.VolumeRecord, m layout.Mapping) {
	d := &thin{generation: v.Generation, snap: 1, maps: map[uint64]place{}}
	for _, r := range m.Runs {
		for i := range r.Length {
			p := place{r.Physical + i, 1}
			if r.Base != 0 {
				p.time = 0
			}
			d.maps[r.Virtual+i] = p
		}
	}
	k.devices[v.Number] = d
}

// mapping is what a device maps, with the base of each block as the map says.
func mapping(m layout.Map, v layout.VolumeRecord, d *thin) layout.Mapping {
	out := layout.Mapping{Number: v.Number, BlockSize: blockSize, Size: v.Size}
	for _, r := range d.runs() {
		run := layout.MappingRun{Virtual: r.Origin, Physical: r.Data, Length: 1}
		for _, b := range v.Bases {
			if owned(m, layout.OfBase, b).Contains(r.Data) {
				run.Base = b
			}
		}
		out.Runs = append(out.Runs, run)
	}
	return out
}

// rebuilt is a host's kernel after a hand-over: what the map gives it, the volumes
// that it has, and those that are coming.
func rebuilt(m layout.Map, host uint32, k *kernel, stored func(layout.VolumeRecord) layout.Mapping, coming func(layout.VolumeRecord) bool) *kernel {
	var other []layout.Mapping
	next := withholding(nil)
	for _, v := range m.Volumes {
		if v.Host != host {
			continue
		}
		switch d := k.devices[v.Number]; {
		case d != nil && d.generation == v.Generation:
			next.load(v, mapping(m, v, d))
		case coming(v):
			next.load(v, stored(v))
		default:
			other = append(other, stored(v))
		}
	}
	reserve := withholding(extent.All(m.Blocks).Minus(ledger.Usable(m, host, other...)))
	next.devices[0] = reserve.devices[0]
	return next
}
