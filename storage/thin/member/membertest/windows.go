// SPDX-License-Identifier: Apache-2.0

// Package membertest has the metadata of a kernel in memory pass for those on a disk,
// as package member reads and writes them.
package membertest

import (
	"context"
	"iter"
	"maps"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/metadata"
)

// Kernel is what Windows need of a kernel in memory: a devmappertest.Kernel.
type Kernel interface {
	WriteMetadata(name string, image devmappertest.Image) error
	ReadMetadata(name string, held uint64) (devmappertest.Image, error)
}

// Windows is member.Windows over a kernel in memory. Step is asked before each change,
// and Look before each look, whether it may be made.
type Windows struct {
	Kernel     Kernel
	Step, Look func() error
}

var _ member.Windows = Windows{}

// Alive is a Step and a Look of a program that nobody kills.
func Alive() error { return nil }

// unusable are metadata that the kernel refuses, as it does what is no pool's.
var unusable = devmappertest.Image{BlockSectors: 1, Devices: map[uint32]devmappertest.ThinImage{}}

// Write is member.Windows'.
func (w Windows) Write(_ context.Context, name string, _ uint64, sb metadata.Superblock) (member.Image, error) {
	if err := w.Step(); err != nil {
		return nil, err
	}
	if err := w.Kernel.WriteMetadata(name, unusable); err != nil {
		return nil, err
	}
	return newDraft(w, name, sb), nil
}

// draft collects an image.
type draft struct {
	Windows
	name    string
	image   devmappertest.Image
	current uint32
}

func newDraft(w Windows, name string, sb metadata.Superblock) *draft {
	return &draft{Windows: w, name: name, image: devmappertest.Image{
		Time: sb.Time, Transaction: sb.TransactionID, BlockSectors: uint64(sb.DataBlockSize), Blocks: sb.DataBlocks,
		Devices: map[uint32]devmappertest.ThinImage{},
	}}
}

func (d *draft) Device(v metadata.Device) error {
	if _, twice := d.image.Devices[v.ID]; twice {
		return failure.New(failure.Usage, "thin device %d: it is there already", v.ID)
	}
	d.current = v.ID
	d.image.Devices[v.ID] = devmappertest.ThinImage{
		Transaction: v.Transaction, CreationTime: v.CreationTime, SnapTime: v.SnapTime, Mappings: map[uint64]devmappertest.Mapped{},
	}
	return nil
}

func (d *draft) Ahead(v metadata.Device) error { return d.Device(v) }

func (d *draft) Written(id uint32) iter.Seq2[metadata.Run, error] {
	r, err := reader(d.image)
	if err != nil {
		return func(yield func(metadata.Run, error) bool) { yield(metadata.Run{}, err) }
	}
	return r.Mappings(id)
}

func (d *draft) Drop(id uint32) error {
	if _, there := d.image.Devices[id]; !there {
		return failure.New(failure.NotFound, "thin device %d: it is not there", id)
	}
	delete(d.image.Devices, id)
	return nil
}

func (d *draft) Map(r metadata.Run) error {
	for i := range r.Length {
		d.image.Devices[d.current].Mappings[r.Origin+i] = devmappertest.Mapped{Block: r.Data + i, Time: r.Time}
	}
	return nil
}

func (d *draft) Finish() error {
	if err := d.Step(); err != nil {
		return err
	}
	return d.Kernel.WriteMetadata(d.name, d.image)
}

func (d *draft) Close() error { return nil }

// Read is member.Windows'.
func (w Windows) Read(_ context.Context, name string, held uint64) (*metadata.Reader, func() error, error) {
	if err := w.Look(); err != nil {
		return nil, nil, err
	}
	image, err := w.Kernel.ReadMetadata(name, held)
	if err != nil {
		return nil, nil, err
	}
	r, err := reader(image)
	return r, func() error { return nil }, err
}

// Roots is member.Windows'.
func (w Windows) Roots(_ context.Context, name string, held uint64) (map[uint32]uint64, error) {
	if err := w.Look(); err != nil {
		return nil, err
	}
	image, err := w.Kernel.ReadMetadata(name, held)
	roots := map[uint32]uint64{}
	for number, d := range image.Devices {
		roots[number] = d.Root
	}
	return roots, err
}

// Retire is member.Windows'.
func (w Windows) Retire(_ context.Context, name string) error {
	if err := w.Step(); err != nil {
		return err
	}
	return w.Kernel.WriteMetadata(name, unusable)
}

func reader(image devmappertest.Image) (*metadata.Reader, error) {
	disk, err := Encode(image)
	if err != nil {
		return nil, err
	}
	return metadata.Open(disk)
}

// Encode writes an image as it would be on a disk.
func Encode(image devmappertest.Image) (*layouttest.Disk, error) {
	content := metadata.Content{DataBlocks: image.Blocks, Devices: uint64(len(image.Devices))}
	for _, d := range image.Devices {
		content.Mappings += uint64(len(d.Mappings))
	}
	content.Often = content.Mappings
	room := content.PackedBlocks()
	disk := layouttest.New("window", int64(room*metadata.BlockSize))
	b, err := metadata.NewBuilder(disk, room, metadata.Superblock{
		Time: image.Time, TransactionID: image.Transaction, NeedsCheck: image.NeedsCheck,
		DataBlockSize: uint32(image.BlockSectors), DataBlocks: image.Blocks,
	})
	if err != nil {
		return nil, err
	}
	for _, number := range slices.Sorted(maps.Keys(image.Devices)) {
		d := image.Devices[number]
		if err := b.Device(metadata.Device{ID: number, Transaction: d.Transaction, CreationTime: d.CreationTime, SnapTime: d.SnapTime}); err != nil {
			return nil, err
		}
		for _, virtual := range slices.Sorted(maps.Keys(d.Mappings)) {
			m := d.Mappings[virtual]
			if err := b.Map(metadata.Run{Origin: virtual, Data: m.Block, Length: 1, Time: m.Time}); err != nil {
				return nil, err
			}
		}
	}
	return disk, b.Finish()
}

// Decode reads an image from a disk.
func Decode(ctx context.Context, r *metadata.Reader) (devmappertest.Image, error) {
	d := newDraft(Windows{}, "", r.Superblock())
	return d.image, r.Stream(ctx, d)
}
