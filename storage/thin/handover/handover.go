// SPDX-License-Identifier: Apache-2.0

// Package handover composes the metadata that a host's pool goes on with when it
// is handed over to new ones, and reads what a pool has in the terms of the map.
//
// A pool never takes a mapping from outside. To attach a volume that comes from
// another host, or to get rid of parked devices, a host writes whole metadata into
// its idle window and moves its thin devices to a second pool on them. What they
// have to say follows from the map: disk 0 maps to itself every block that the
// host must not allocate; an attached volume's private blocks are mapped at the
// pool's time, so that they are written in place, and those of its bases before
// it, so that they are copied (dm-thin copies when a mapping is older than the
// device's snapshot). The device's transaction is the volume's generation, by
// which the host's metadata and the stored mapping are told apart.
package handover

import (
	"cmp"
	"context"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/metadata"
)

// The times of composed metadata.
const (
	shared  = 0
	private = 1 // the pool's time, and of each volume's snapshot
)

// Attached is a volume that the metadata are to have, with what it maps.
type Attached struct {
	Volume  layout.VolumeRecord
	Mapping layout.Mapping
}

// Plan is what the metadata of a host are to say.
type Plan struct {
	superblock metadata.Superblock
	m          layout.Map
	host       uint32
	own        extent.Set // what the host may allocate, or a volume of it maps
	attached   []Attached
	coming     []Attached
	foreseen   []Attached // attached too, and written ahead
	stale      []uint32   // written ahead, and not to be as they were foreseen
}

// Compose plans the metadata of a host with the volumes that are attached. Of volumes
// that are on their way to the host and not to be in these metadata, stored are the
// mappings; see ledger.Usable. image is the generation of these metadata. A volume
// with blocks that the map does not give the host is a failure.Problems.
func Compose(m layout.Map, host uint32, image uint64, attached []Attached, stored ...layout.Mapping) (Plan, error) {
	return Plan{
		superblock: metadata.Superblock{
			Time: private, TransactionID: image, DataBlockSize: uint32(m.BlockSize / 512), DataBlocks: m.Blocks,
		},
		m: m, host: host, own: ledger.Usable(m, host, stored...),
	}.With(attached)
}

// Coming adds volumes that no pool runs: what they map nobody changes.
func (p Plan) Coming(volumes ...Attached) (Plan, error) {
	if err := p.fit(volumes); err != nil {
		return Plan{}, err
	}
	p.coming = slices.Concat(p.coming, volumes)
	return p, p.once()
}

// Foresee is the plan with the attached volumes as a metadata snapshot has them, to be
// written ahead by WriteForeseen. With has to follow.
func (p Plan) Foresee(attached []Attached) (Plan, error) {
	p, err := p.With(attached)
	p.foreseen, p.attached = p.attached, nil
	return p, err
}

// With is the plan with what attached volumes map by now. Its disk 0 is the same, and so
// are the volumes that are coming, and of those that were foreseen the ones with the
// numbers of same. Drop has to take back the others.
func (p Plan) With(attached []Attached, same ...uint32) (Plan, error) {
	if err := p.fit(attached); err != nil {
		return Plan{}, err
	}
	p.attached = slices.Clone(attached)
	slices.SortFunc(p.attached, func(a, b Attached) int { return cmp.Compare(a.Volume.Number, b.Volume.Number) })
	foreseen, stale := []Attached(nil), slices.Clone(p.stale)
	for _, f := range p.foreseen {
		if slices.Contains(same, f.Volume.Number) {
			foreseen = append(foreseen, f)
		} else {
			stale = append(stale, f.Volume.Number)
		}
	}
	if len(foreseen) != len(same) {
		return Plan{}, failure.New(failure.Problems, "volumes %v: not all of them are written", same)
	}
	p.foreseen, p.stale = foreseen, stale
	return p, p.once()
}

// fit refuses volumes that the map does not give the host.
func (p Plan) fit(volumes []Attached) error {
	for _, a := range volumes {
		foreign := a.Mapping.Private().Minus(p.own)
		for _, b := range a.Volume.Bases {
			foreign = foreign.Union(a.Mapping.Of(b).Minus(p.m.Owned(layout.Owner{Kind: layout.OfBase, Number: b})))
		}
		if !foreign.Empty() || a.Volume.Host != p.host {
			return p.cannot(a, foreign)
		}
	}
	return nil
}

// once refuses a volume that is there twice.
func (p Plan) once() error {
	seen := map[uint32]bool{}
	for _, a := range slices.Concat(p.attached, p.foreseen, p.coming) {
		if seen[a.Volume.Number] {
			return p.cannot(a, nil)
		}
		seen[a.Volume.Number] = true
	}
	return nil
}

func (p Plan) cannot(a Attached, blocks extent.Set) error {
	err := failure.New(failure.Problems, "volume %s: at host %d, it cannot be in the metadata of host %d with blocks %v", a.Volume.Name, a.Volume.Host, p.host, blocks)
	return failure.Hint(err, "run `diskhook thin check`")
}

// withheld is what disk 0 maps.
func (p Plan) withheld() extent.Set { return extent.All(p.superblock.DataBlocks).Minus(p.own) }

// Superblock is what metadata.NewBuilder needs.
func (p Plan) Superblock() metadata.Superblock { return p.superblock }

// Content is what their size depends on.
func (p Plan) Content() metadata.Content {
	volumes := slices.Concat(p.attached, p.foreseen, p.coming)
	c := metadata.Content{DataBlocks: p.superblock.DataBlocks, Devices: 1 + uint64(len(volumes)), Mappings: p.withheld().Blocks()}
	for _, a := range volumes {
		c.Mappings += a.Mapping.Blocks()
		c.Often += a.Mapping.Blocks() - a.Mapping.Private().Blocks() // volumes may share a base
	}
	return c
}

// Draft is metadata that are being written: a metadata.Builder.
type Draft interface {
	metadata.Sink
	Ahead(metadata.Device) error
}

// Write writes them, and finishes.
func (p Plan) Write(to Draft) error {
	if err := p.WriteAhead(to); err != nil {
		return err
	}
	return p.WriteAttached(to)
}

// WriteAhead writes disk 0, and the volumes that are coming. No guest changes what they
// say, so it can be written while they run; WriteAttached has to follow.
func (p Plan) WriteAhead(to Draft) error {
	if err := to.Device(metadata.Device{ID: 0}); err != nil {
		return err
	}
	for _, e := range p.withheld() {
		if err := to.Map(metadata.Run{Origin: e.Start, Data: e.Start, Length: e.Length, Time: shared}); err != nil {
			return err
		}
	}
	for _, a := range p.coming {
		if err := write(to, to.Ahead, a); err != nil {
			return err
		}
	}
	return nil
}

// WriteForeseen writes the volumes that are foreseen, after WriteAhead.
func (p Plan) WriteForeseen(to Draft) error {
	for _, a := range p.foreseen {
		if err := write(to, to.Ahead, a); err != nil {
			return err
		}
	}
	return nil
}

// Drop takes back what was foreseen otherwise, before WriteAttached.
func (p Plan) Drop(drop func(id uint32) error) error {
	for _, id := range p.stale {
		if err := drop(id); err != nil {
			return err
		}
	}
	return nil
}

// WriteAttached writes what the attached volumes map, and finishes.
func (p Plan) WriteAttached(to Draft) error {
	for _, a := range p.attached {
		if err := write(to, to.Device, a); err != nil {
			return err
		}
	}
	return to.Finish()
}

// write writes one volume, of which begin begins the device.
func write(to Draft, begin func(metadata.Device) error, a Attached) error {
	if err := begin(metadata.Device{ID: a.Volume.Number, Transaction: a.Volume.Generation, SnapTime: private}); err != nil {
		return err
	}
	for rest := runs(a.Mapping.Runs); ; {
		r, ok := rest.next()
		if !ok {
			return nil
		}
		if err := to.Map(r); err != nil {
			return err
		}
	}
}

// runs gives those of a volume in composed metadata one by one, as long as can be: as a
// Reader has them.
type runs []layout.MappingRun

// next is false when there is none left.
func (r *runs) next() (metadata.Run, bool) {
	if len(*r) == 0 {
		return metadata.Run{}, false
	}
	run := composed((*r)[0])
	for *r = (*r)[1:]; len(*r) > 0; *r = (*r)[1:] {
		more := composed((*r)[0])
		if run.Time != more.Time || run.Origin+run.Length != more.Origin || run.Data+run.Length != more.Data {
			break
		}
		run.Length += more.Length
	}
	return run, true
}

func composed(r layout.MappingRun) metadata.Run {
	run := metadata.Run{Origin: r.Virtual, Data: r.Physical, Length: r.Length, Time: private}
	if r.Base != 0 {
		run.Time = shared
	}
	return run
}

// Mapping is what a device maps in a host's metadata, as the volume's stored
// mapping says it: each run with the base that owns its blocks. Those of a live
// pool are read through a metadata snapshot.
func Mapping(from *metadata.Reader, m layout.Map, v layout.VolumeRecord) (layout.Mapping, error) {
	return SnapshotMapping(from, m, v, v.Number)
}

// SnapshotMapping is the same of a snapshot that the host's kernel made of the
// volume, under a number of its own.
func SnapshotMapping(from *metadata.Reader, m layout.Map, v layout.VolumeRecord, number uint32) (layout.Mapping, error) {
	out := layout.Mapping{Number: v.Number, BlockSize: m.BlockSize, Size: v.Size}
	bases := map[uint32]extent.Set{}
	for _, b := range v.Bases {
		bases[b] = m.Owned(layout.Owner{Kind: layout.OfBase, Number: b})
	}
	for run, err := range from.Mappings(number) {
		if err != nil {
			return layout.Mapping{}, err
		}
		out.Runs = append(out.Runs, label(run, bases)...)
	}
	return out, out.Check()
}

// label cuts a run where the owner of its blocks changes.
func label(run metadata.Run, bases map[uint32]extent.Set) []layout.MappingRun {
	whole := extent.Of(extent.Extent{Start: run.Data, Length: run.Length})
	var runs []layout.MappingRun
	add := func(part extent.Set, base uint32) {
		for _, e := range part {
			runs = append(runs, layout.MappingRun{Virtual: run.Origin + e.Start - run.Data, Physical: e.Start, Length: e.Length, Base: base})
		}
	}
	rest := whole
	for base, blocks := range bases {
		add(whole.Intersect(blocks), base)
		rest = rest.Minus(blocks)
	}
	add(rest, 0)
	slices.SortFunc(runs, func(a, b layout.MappingRun) int { return cmp.Compare(a.Virtual, b.Virtual) })
	return runs
}

// Image is a host's metadata as package invariant judges them.
func Image(ctx context.Context, from *metadata.Reader) (invariant.Image, error) {
	sb := from.Superblock()
	image := invariant.Image{Blocks: sb.DataBlocks, Time: sb.Time, Devices: map[uint32]invariant.Device{}}
	for d, err := range from.Devices() {
		if err := cmp.Or(err, context.Cause(ctx)); err != nil {
			return invariant.Image{}, err
		}
		out := invariant.Device{Generation: d.Transaction, SnapTime: d.SnapTime}
		for run, err := range from.Mappings(d.ID) {
			if err != nil {
				return invariant.Image{}, err
			}
			out.Runs = append(out.Runs, invariant.Run{Virtual: run.Origin, Physical: run.Data, Length: run.Length, Time: run.Time})
		}
		image.Devices[d.ID] = out
	}
	return image, nil
}
