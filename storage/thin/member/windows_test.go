// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"maps"
	"slices"

	"diskhook/storage/thin/devmapper/devmappertest"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/metadata"
)

// windows has the metadata of a kernel in memory pass for those on a disk.
type windows struct{ h *node }

// unusable are metadata that the kernel refuses, as it does what is no pool's.
var unusable = devmappertest.Image{BlockSectors: 1, Devices: map[uint32]devmappertest.ThinImage{}}

func (w windows) Write(_ context.Context, name string, _ uint64, sb metadata.Superblock) (member.Image, error) {
	if err := w.h.life.step(); err != nil {
		return nil, err
	}
	if err := w.h.kernel.WriteMetadata(name, unusable); err != nil {
		return nil, err
	}
	return &draft{windows: w, name: name, image: devmappertest.Image{
		Time: sb.Time, Transaction: sb.TransactionID, BlockSectors: uint64(sb.DataBlockSize), Blocks: sb.DataBlocks,
		Devices: map[uint32]devmappertest.ThinImage{},
	}}, nil
}

// draft collects an image.
type draft struct {
	windows
	name    string
	image   devmappertest.Image
	current uint32
}

func (d *draft) Device(v metadata.Device) error {
	d.current = v.ID
	d.image.Devices[v.ID] = devmappertest.ThinImage{
		Transaction: v.Transaction, CreationTime: v.CreationTime, SnapTime: v.SnapTime, Mappings: map[uint64]devmappertest.Mapped{},
	}
	return nil
}

func (d *draft) Map(r metadata.Run) error {
	for i := range r.Length {
		d.image.Devices[d.current].Mappings[r.Origin+i] = devmappertest.Mapped{Block: r.Data + i, Time: r.Time}
	}
	return nil
}

func (d *draft) Finish() error {
	if err := d.h.life.step(); err != nil {
		return err
	}
	return d.h.kernel.WriteMetadata(d.name, d.image)
}

func (d *draft) Close() error { return nil }

func (w windows) Read(_ context.Context, name string, held uint64) (*metadata.Reader, func() error, error) {
	if err := w.h.life.dead(); err != nil {
		return nil, nil, err
	}
	image, err := w.h.kernel.ReadMetadata(name, held)
	if err != nil {
		return nil, nil, err
	}
	r, err := reader(image)
	return r, func() error { return nil }, err
}

func (w windows) Retire(_ context.Context, name string) error {
	if err := w.h.life.step(); err != nil {
		return err
	}
	return w.h.kernel.WriteMetadata(name, unusable)
}

func reader(image devmappertest.Image) (*metadata.Reader, error) {
	disk, err := encode(image)
	if err != nil {
		return nil, err
	}
	return metadata.Open(disk)
}

// encode writes an image as it would be on a disk.
func encode(image devmappertest.Image) (*layouttest.Disk, error) {
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
