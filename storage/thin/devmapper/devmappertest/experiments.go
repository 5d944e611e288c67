// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"context"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/devmapper"
)

func messages(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	refused := func(m devmapper.Message, errno syscall.Errno) {
		b.Helper()
		b.is(b.Mapper.Message(b.ctx, "pool", m), errno)
	}
	for _, id := range []uint32{0, 1, devmapper.MaxID} {
		r.message(devmapper.CreateThin(id))
		refused(devmapper.CreateThin(id), syscall.EEXIST)
	}
	refused(devmapper.CreateThin(devmapper.MaxID+1), syscall.EINVAL)
	refused("create_thin", syscall.EINVAL)
	refused("insert_mapping 1 2 3", syscall.EINVAL)
	refused(devmapper.CreateSnap(2, 77), syscall.ENODATA)
	refused(devmapper.CreateSnap(0, 1), syscall.EEXIST)
	refused(devmapper.Delete(77), syscall.ENODATA)
	refused(devmapper.ReleaseSnapshot(), syscall.EINVAL)
	r.message(devmapper.ReserveSnapshot())
	refused(devmapper.ReserveSnapshot(), syscall.EBUSY)
	r.message(devmapper.ReleaseSnapshot())
	r.thin("thin", 1, 4)
	refused(devmapper.Delete(1), syscall.EBUSY)
	b.must(b.write("thin", 0, 1))
	b.must(b.Mapper.Remove(b.ctx, "thin"))
	r.message(devmapper.Delete(1))
	if s := r.status(); s.DataUsed != 0 {
		b.Errorf("%v", s)
	}
	err := b.create("thin", devmapper.Of(8, devmapper.Thin{Pool: b.number("pool"), ID: 1}))
	b.is(err, syscall.ENODATA)
}

func transaction(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	r.message(devmapper.SetTransaction(0, 1<<40))
	b.is(b.Mapper.Message(b.ctx, "pool", devmapper.SetTransaction(0, 7)), syscall.EINVAL)
	if s := r.status(); s.Transaction != 1<<40 {
		b.Errorf("%v", s)
	}
}

func snapshot(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	r.message(devmapper.CreateThin(1))
	r.thin("origin", 1, 4)
	b.must(b.write("origin", 0, 0x10))
	b.must(b.write("origin", 1, 0x11))
	b.must(b.Mapper.Suspend(b.ctx, "origin", false))
	r.message(devmapper.CreateSnap(2, 1))
	b.must(b.Mapper.Resume(b.ctx, "origin"))
	r.thin("snap", 2, 4)
	if s := r.status(); s.DataUsed != 2 {
		b.Errorf("%v", s)
	}
	b.must(b.write("origin", 0, 0x20))
	b.must(b.write("snap", 1, 0x31))
	for device, want := range map[string][2]byte{"origin": {0x20, 0x11}, "snap": {0x10, 0x31}} {
		b.reads(device, 0, want[0])
		b.reads(device, 1, want[1])
	}
	if s := r.status(); s.DataUsed != 4 {
		b.Errorf("%v", s)
	}
	// The origin has block 1 alone by now, and copies it all the same: the old
	// one becomes free.
	before := r.mappings(1)[1].Block
	b.must(b.write("origin", 1, 0x21))
	if after := r.mappings(1)[1].Block; after == before || r.status().DataUsed != 4 {
		b.Errorf("block %d became %d; %v", before, after, r.status())
	}
	b.reads("snap", 1, 0x31)
}

func heldSnapshot(b bench) {
	r := b.pool("pool", Image{Blocks: 8})
	r.message(devmapper.CreateThin(1))
	r.thin("thin", 1, 8)
	b.must(b.write("thin", 0, 0x10))
	b.must(b.write("thin", 5, 0x15))
	r.message(devmapper.ReserveSnapshot())
	b.must(b.discard("thin", 0, blockSize))
	b.must(b.write("thin", 6, 0x16))
	s := r.status()
	if s.DataUsed != 3 || s.HeldRoot == 0 {
		b.Errorf("%v", s)
	}
	image, err := b.Read(r.metadata, s.HeldRoot)
	b.must(err)
	if diff := cmp.Diff(map[uint64]Mapped{0: {0, 0}, 5: {1, 0}}, image.Devices[1].Mappings); diff != "" {
		b.Error(diff)
	}
	if _, err := b.Read(r.metadata, 0); err == nil {
		b.Error("metadata that are in use were read without their being held")
	}
	r.message(devmapper.ReleaseSnapshot())
	if s := r.status(); s.DataUsed != 2 || s.HeldRoot != 0 {
		b.Errorf("%v", s)
	}
}

func binding(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	table := devmapper.Of(16*blockSectors, r.spec())
	b.is(b.create("second", table), syscall.EBUSY)
	if err := b.Write(r.metadata, Image{BlockSectors: blockSectors, Blocks: 16, Devices: map[uint32]ThinImage{}}); err == nil {
		b.Error("metadata in use were written")
	}
	other := rig{b, "pool", b.Disk(b.T, metadataSize), r.data}
	b.is(b.Mapper.Load(b.ctx, "pool", devmapper.Of(16*blockSectors, other.spec())), syscall.EINVAL)
	// The same data under other metadata is nothing that it minds.
	b.must(b.create("second", devmapper.Of(16*blockSectors, other.spec())))
	if info, err := b.Mapper.Info(b.ctx, r.data); err != nil || info.Open < 2 {
		b.Errorf("%+v, %v", info, err)
	}
	b.must(b.Mapper.Remove(b.ctx, "second"))
}

func handOver(b bench) {
	b.must(b.Mapper.SetNoSpaceTimeout(0))
	r := b.offered(3, 4)
	r.thin("thin", 5, 8)
	b.must(b.write("thin", 0, 0x10))
	b.must(b.write("thin", 1, 0x11))
	request := r.begin("thin", 2)
	b.must(b.Mapper.Suspend(b.ctx, "thin", true))

	next := rig{b, "next", b.Disk(b.T, metadataSize), r.data}
	b.must(b.Write(next.metadata, Image{Time: 1, BlockSectors: blockSectors, Blocks: 16, Devices: map[uint32]ThinImage{
		0: identity(16, 3, 4, 7), 5: {SnapTime: 1, Mappings: r.mappings(5)},
	}}))
	b.must(b.create("next", devmapper.Of(16*blockSectors, next.spec())))
	b.must(b.Mapper.Load(b.ctx, "thin", devmapper.Of(8*blockSectors, devmapper.Thin{Pool: b.number("next"), ID: 5})))
	if info, err := b.Mapper.Info(b.ctx, "thin"); err != nil || !info.Inactive || !info.Suspended {
		b.Errorf("%+v, %v", info, err)
	}
	b.must(b.Mapper.Resume(b.ctx, "thin"))
	b.must(b.ends(request))
	b.must(b.Mapper.Remove(b.ctx, "pool"))
	for v, want := range map[uint64]byte{0: 0x10, 1: 0x11, 2: 0x44, 3: 0} {
		b.reads("thin", v, want)
	}
	if diff := cmp.Diff(map[uint64]Mapped{0: {3, 1}, 1: {4, 1}, 2: {7, 1}}, next.mappings(5)); diff != "" {
		b.Error(diff)
	}
	table, err := b.Mapper.Table(b.ctx, "thin")
	b.must(err)
	if diff := cmp.Diff(devmapper.Of(8*blockSectors, devmapper.Thin{Pool: b.number("next"), ID: 5}), table); diff != "" {
		b.Error(diff)
	}
	old, err := b.Read(r.metadata, 0) // nobody has them now
	b.must(err)
	if diff := cmp.Diff(map[uint64]Mapped{0: {3, 1}, 1: {4, 1}}, old.Devices[5].Mappings); diff != "" {
		b.Error(diff)
	}
	b.must(b.Mapper.Remove(b.ctx, "thin"))
	b.must(b.Mapper.Remove(b.ctx, "next"))
}

func suspendedPool(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	r.message(devmapper.CreateThin(1))
	b.must(b.Mapper.Suspend(b.ctx, "pool", false))
	table := devmapper.Of(8, devmapper.Thin{Pool: b.number("pool"), ID: 1})
	b.is(b.create("thin", table), syscall.EINVAL)
	b.must(b.Mapper.Resume(b.ctx, "pool"))
	b.must(b.create("thin", table))
}

func suspendedRequests(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	r.message(devmapper.CreateThin(1))
	r.thin("thin", 1, 4)
	b.must(b.Mapper.Suspend(b.ctx, "pool", false))
	request := make(chan error, 1)
	go func() { request <- b.write("thin", 0, 0x10) }()
	b.Elapse(time.Second)
	select {
	case err := <-request:
		b.Fatalf("the write did not wait: %v", err)
	default:
	}
	b.must(b.Mapper.Resume(b.ctx, "pool"))
	b.must(b.ends(request))
	b.reads("thin", 0, 0x10)
}

func shortTable(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	b.must(b.Mapper.Load(b.ctx, "pool", devmapper.Of(15*blockSectors, r.spec())))
	b.is(b.Mapper.Resume(b.ctx, "pool"), syscall.EINVAL)
	if info, err := b.Mapper.Info(b.ctx, "pool"); err != nil || !info.Suspended {
		b.Errorf("%+v, %v", info, err)
	}
	b.must(b.Mapper.Load(b.ctx, "pool", devmapper.Of(16*blockSectors, r.spec())))
	b.must(b.Mapper.Resume(b.ctx, "pool"))
	if s := r.status(); s.DataTotal != 16 || s.Mode != devmapper.ReadWrite {
		b.Errorf("%v", s)
	}
}

func longTable(b bench) {
	r := b.pool("pool", Image{Time: 1, BlockSectors: blockSectors, Blocks: 16, Devices: map[uint32]ThinImage{0: identity(8)}})
	if s := r.status(); s.Free() != 8 {
		b.Fatalf("%v", s)
	}
	image := Image{Time: 1, BlockSectors: blockSectors, Blocks: 8, Devices: map[uint32]ThinImage{0: identity(8)}}
	b.must(b.Mapper.Remove(b.ctx, "pool"))
	b.must(b.Write(r.metadata, image))
	b.must(b.create("pool", devmapper.Of(16*blockSectors, r.spec())))
	if s := r.status(); s.Free() != 8 || s.DataTotal != 16 {
		b.Errorf("of a disk 0 that has all blocks the pool gives %v", s)
	}
}

func removeInUse(b bench) {
	r := b.pool("pool", Image{Blocks: 16})
	r.message(devmapper.CreateThin(1))
	r.thin("thin", 1, 4)
	b.is(b.Mapper.Remove(b.ctx, "pool"), syscall.EBUSY)
	f, err := b.Mapper.Open(b.ctx, "thin")
	b.must(err)
	if info, err := b.Mapper.Info(b.ctx, "thin"); err != nil || info.Open < 1 {
		b.Errorf("%+v, %v", info, err)
	}
	b.must(f.Close())
	b.must(b.Mapper.Remove(b.ctx, "thin"))
	b.must(b.Mapper.Remove(b.ctx, "pool"))
	_, err = b.Mapper.Info(b.ctx, "pool")
	b.is(err, syscall.ENXIO)
}

func lowWater(b bench) {
	r := b.offered(3, 4, 5)
	spec := r.spec()
	spec.LowWater = 2
	b.must(b.Mapper.Load(b.ctx, "pool", devmapper.Of(16*blockSectors, spec)))
	b.must(b.Mapper.Resume(b.ctx, "pool"))
	r.thin("thin", 5, 8)
	info, err := b.Mapper.Info(b.ctx, "pool")
	b.must(err)
	b.must(b.write("thin", 0, 1))
	same, err := b.Mapper.Info(b.ctx, "pool")
	b.must(err)
	if same.Events != info.Events {
		b.Errorf("an event with 2 blocks left before the allocation")
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	b.must(b.write("thin", 1, 1))
	events, err := b.Mapper.Wait(ctx, "pool", info.Events)
	if err != nil || events == info.Events {
		b.Errorf("event %d after %d: %v", events, info.Events, err)
	}
	gone, stop := context.WithCancel(b.ctx)
	stop()
	if _, err := b.Mapper.Wait(gone, "pool", events); err == nil {
		b.Error("a wait outlives its context")
	}
}

func externalOrigin(b bench) {
	origin := b.Disk(b.T, 2*blockSize)
	for v := range uint64(2) {
		b.must(b.write(origin, v, 0x10+byte(v)))
	}
	r := b.pool("pool", Image{Blocks: 16})
	r.message(devmapper.CreateThin(1))
	b.must(b.create("thin", devmapper.Of(4*blockSectors, devmapper.Thin{Pool: b.number("pool"), ID: 1, Origin: b.number(origin)})))
	b.reads("thin", 0, 0x10)
	b.reads("thin", 2, 0)
	b.must(b.write("thin", 1, 0x20))
	b.must(b.write("thin", 3, 0x23))
	for v, want := range map[uint64]byte{0: 0x10, 1: 0x20, 2: 0, 3: 0x23} {
		b.reads("thin", v, want)
	}
	b.reads(origin, 1, 0x11)
	if s := r.status(); s.DataUsed != 2 {
		b.Errorf("%v", s)
	}
}
