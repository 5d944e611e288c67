// SPDX-License-Identifier: Apache-2.0

package devmappertest

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/devmapper"
)

// Behaviours runs every experiment in a lab of its own, one after the other.
func Behaviours(t *testing.T, lab func(t *testing.T) Lab) {
	for _, x := range []struct {
		fact string
		do   func(b bench)
	}{
		{"a write copies if the mapping is older than the snapshot, whatever is shared", sharing},
		{"a discard of disk 0 grants blocks", grant},
		{"without space a write waits until there is some", outOfSpace},
		{"without space a write fails after the timeout", noSpaceTimeout},
		{"a block that was freed is free after a commit", freedAfterCommit},
		{"only whole blocks are discarded", partialDiscard},
		{"a read-only pool takes discards and drops them", readOnlyDiscard},
		{"messages", messages},
		{"the transaction number is compared and swapped", transaction},
		{"a snapshot shares everything and diverges", snapshot},
		{"what metadata hold is not freed", heldSnapshot},
		{"metadata that a pool has are not given to others", binding},
		{"a thin device moves to another pool on the same data", handOver},
		{"a suspended pool activates no thin device", suspendedPool},
		{"a suspended pool holds its thin devices' requests back", suspendedRequests},
		{"a table that is too short leaves the pool suspended", shortTable},
		{"a table that is longer makes free blocks", longTable},
		{"who is in use is not removed", removeInUse},
		{"an event comes at the low-water mark", lowWater},
		{"an external origin is read and copied from", externalOrigin},
	} {
		t.Run(x.fact, func(t *testing.T) {
			x.do(bench{t, lab(t), context.WithoutCancel(t.Context())})
		})
	}
}

// is wants an error of the kernel.
func (b bench) is(err error, errno syscall.Errno) {
	b.Helper()
	if !errors.Is(err, errno) {
		b.Errorf("%v, want %v", err, errno)
	}
}

func sharing(b bench) {
	image := Image{Time: 1, BlockSectors: blockSectors, Blocks: 32, Devices: map[uint32]ThinImage{
		0: identity(32, 2, 3, 20, 21, 22, 23, 24),
		5: {SnapTime: 1, Mappings: map[uint64]Mapped{0: {0, 0}, 1: {1, 1}, 2: {2, 0}, 3: {3, 1}}},
	}}
	r := b.pool("pool", image)
	r.thin("thin", 5, 4)
	for v := range uint64(4) {
		b.must(b.write(r.data, v, 0x11)) // what was there
	}
	for v := range uint64(4) {
		b.must(b.write("thin", v, 0x22))
		b.reads("thin", v, 0x22)
	}
	got := r.mappings(5)
	for v, inPlace := range map[uint64]bool{0: false, 1: true, 2: false, 3: true} {
		if at := got[v].Block; (at == v) != inPlace || got[v].Time != 1 {
			b.Errorf("virtual block %d is at %d since %d", v, at, got[v].Time)
		}
		if inPlace {
			b.reads(r.data, v, 0x22)
		} else {
			b.reads(r.data, v, 0x11)
		}
	}
	// Two blocks were copied. Of one the device was the last to have it.
	if used := r.status().DataUsed; used != 27+2-1 {
		b.Errorf("%d blocks in use", used)
	}
}

// offered is a pool whose disk 0 has all blocks but free ones, and an empty device.
func (b bench) offered(free ...uint64) rig {
	b.Helper()
	return b.pool("pool", Image{Time: 1, BlockSectors: blockSectors, Blocks: 16, Devices: map[uint32]ThinImage{
		0: identity(16, free...), 5: {SnapTime: 1, Mappings: map[uint64]Mapped{}},
	}})
}

func grant(b bench) {
	r := b.offered()
	if free := r.status().Free(); free != 0 {
		b.Fatalf("%d free blocks", free)
	}
	r.thin("d0", 0, 16)
	for range 2 { // it may be repeated
		b.must(b.discard("d0", 4*blockSize, 3*blockSize))
		if free := r.status().Free(); free != 3 {
			b.Errorf("%d free blocks, 3 were granted", free)
		}
	}
	r.thin("thin", 5, 8)
	for v := range uint64(3) {
		b.must(b.write("thin", v, 0x33))
	}
	want := map[uint64]Mapped{0: {4, 1}, 1: {5, 1}, 2: {6, 1}}
	if diff := cmp.Diff(want, r.mappings(5)); diff != "" {
		b.Error(diff)
	}
}

// begin starts a write that will wait, and returns when the pool says so.
func (r rig) begin(device string, block uint64) <-chan error {
	request := make(chan error, 1)
	go func() { request <- r.write(device, block, 0x44) }()
	r.within("the pool is out of data space", func() bool { return r.status().Mode == devmapper.OutOfDataSpace })
	return request
}

func outOfSpace(b bench) {
	b.must(b.Mapper.SetNoSpaceTimeout(0))
	r := b.offered(9)
	r.thin("thin", 5, 8)
	r.thin("d0", 0, 16)
	b.must(b.write("thin", 0, 0x33))
	request := r.begin("thin", 1)
	b.must(b.write("thin", 0, 0x34)) // what is mapped goes on
	select {
	case err := <-request:
		b.Fatalf("the write did not wait: %v", err)
	default:
	}
	b.must(b.discard("d0", 12*blockSize, blockSize))
	r.within("the pool writes again", func() bool { return r.status().Mode == devmapper.ReadWrite })
	b.must(b.ends(request))
	b.reads("thin", 0, 0x34)
	b.reads("thin", 1, 0x44)
	if got := r.mappings(5)[1].Block; got != 12 {
		b.Errorf("it is in block %d", got)
	}
}

func noSpaceTimeout(b bench) {
	b.must(b.Mapper.SetNoSpaceTimeout(2 * time.Second))
	r := b.offered()
	r.thin("thin", 5, 8)
	request := r.begin("thin", 0)
	b.Elapse(3 * time.Second)
	b.is(b.ends(request), syscall.ENOSPC)
	if s := r.status(); s.Mode != devmapper.OutOfDataSpace || !s.ErrorIfNoSpace {
		b.Errorf("%v", s)
	}
	b.is(b.write("thin", 0, 0x44), syscall.ENOSPC)
	b.reads("thin", 0, 0)
}

func freedAfterCommit(b bench) {
	r := b.offered(3)
	r.thin("thin", 5, 8)
	b.must(b.write("thin", 0, 0x55))
	b.must(b.discard("thin", 0, blockSize))
	b.reads("thin", 0, 0)
	b.must(b.write("thin", 4, 0x56)) // the kernel commits when there is nothing else
	if got := r.mappings(5); len(got) != 1 || got[4].Block != 3 {
		b.Errorf("%v", got)
	}
}

func partialDiscard(b bench) {
	r := b.offered(3, 4, 5)
	r.thin("thin", 5, 8)
	for v := range uint64(3) {
		b.must(b.write("thin", v, 0x66))
	}
	b.must(b.discard("thin", blockSize/2, 2*blockSize))
	b.reads("thin", 0, 0x66)
	b.reads("thin", 1, 0)
	b.reads("thin", 2, 0x66)
	s, err := b.Mapper.Status(b.ctx, "thin", false)
	b.must(err)
	if want := (devmapper.ThinStatus{Mapped: 2 * blockSectors, Highest: 3*blockSectors - 1}); *s.Thin != want {
		b.Errorf("%v", s.Thin)
	}
}

func readOnlyDiscard(b bench) {
	r := b.offered(3)
	r.thin("thin", 5, 8)
	b.must(b.write("thin", 0, 0x77))
	spec := r.spec()
	spec.Features.ReadOnly = true
	b.must(b.Mapper.Load(b.ctx, "pool", devmapper.Of(16*blockSectors, spec)))
	b.must(b.Mapper.Suspend(b.ctx, "pool", false))
	b.must(b.Mapper.Resume(b.ctx, "pool"))
	if s := r.status(); s.Mode != devmapper.ReadOnly {
		b.Fatalf("%v", s)
	}
	b.must(b.discard("thin", 0, blockSize))
	b.reads("thin", 0, 0x77)
	if s := r.status(); s.DataUsed != 16 {
		b.Errorf("%v", s)
	}
	b.must(b.write("thin", 0, 0x78)) // in place
	b.is(b.write("thin", 1, 0x79), syscall.EIO)
	b.is(b.Mapper.Message(b.ctx, "pool", devmapper.CreateThin(9)), syscall.EOPNOTSUPP)
}
