// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"iter"
	"testing"

	"pgregory.net/rapid"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/metadata"
)

// clocked counts what is written and read back of devices while guests are held back.
type clocked struct {
	member.Windows
	h      *node
	paused map[uint32]uint64 // blocks, by device
	read   map[uint32]uint64 // of those that were written ahead
	verify func(id uint32)   // is told before that
}

// clock has a host's metadata written and read by way of one.
func clock(h *node) *clocked {
	c := &clocked{Windows: h.Windows, h: h, paused: map[uint32]uint64{}, read: map[uint32]uint64{}}
	h.Windows = c
	return c
}

type clockedImage struct {
	member.Image
	c  *clocked
	id uint32
}

func (c *clocked) Write(ctx context.Context, name string, blocks uint64, sb metadata.Superblock) (member.Image, error) {
	image, err := c.Windows.Write(ctx, name, blocks, sb)
	return &clockedImage{Image: image, c: c}, err
}

func (i *clockedImage) Device(d metadata.Device) error {
	i.id = d.ID
	return i.Image.Device(d)
}

func (i *clockedImage) Ahead(d metadata.Device) error {
	i.id = d.ID
	return i.Image.Ahead(d)
}

func (i *clockedImage) Map(r metadata.Run) error {
	if i.c.held() {
		i.c.paused[i.id] += r.Length
	}
	return i.Image.Map(r)
}

func (i *clockedImage) Written(id uint32) iter.Seq2[metadata.Run, error] {
	return func(yield func(metadata.Run, error) bool) {
		if i.c.verify != nil {
			i.c.verify(id)
		}
		for r, err := range i.Image.Written(id) {
			if !i.c.held() {
				i.c.read[id] += r.Length
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// held says whether a guest is.
func (c *clocked) held() bool {
	info, err := c.h.kernel.Info(context.Background(), "dh-"+cluster+"+v1")
	return err == nil && info.Suspended
}

// What a volume maps that comes is written, and read back, before guests of other
// volumes are held back.
func TestGuestsDoNotWaitForWhatComes(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	c := clock(one)
	one.attach("v2")
	v1, v2 := w.record("v1").Number, w.record("v2").Number
	if n := c.paused[v1]; n != 0 {
		t.Errorf("%d blocks of v1, which nobody had written to, were written while it was held back", n)
	}
	if n := c.paused[v2]; n != 0 {
		t.Errorf("%d blocks of v2 were written while v1 was held back", n)
	}
	if c.read[v2] == 0 {
		t.Error("v2 was not read back before v1 was held back")
	}
	one.reads("v1")
	one.reads("v2")
	w.check()
}

// What a guest writes or drops after its volume was written ahead is in the metadata
// that its pool goes on with, and of volumes that did not change nothing is written
// while guests are held back.
func TestGuestsWriteBetween(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := stage(t)
		one := w.hosts[0]
		c := clock(one)
		one.attach("v2")
		v1, v2 := w.record("v1").Number, w.record("v2").Number
		clear(c.paused)
		v := rapid.Uint64Range(0, perVolume-1).Draw(r, "virtual block")
		discarded := rapid.Bool().Draw(r, "discarded before") // so that blocks and tree nodes become free
		c.verify = func(id uint32) {
			if id != v1 {
				return
			}
			if discarded {
				one.discard("v1", v)
			}
			one.write("v1", v)
			if rapid.Bool().Draw(r, "discarded") {
				one.discard("v1", v)
			}
		}
		w.must(one.Rebuild(t.Context()))
		if n := c.paused[v2]; n != 0 {
			t.Errorf("%d blocks of v2, which did not change", n)
		}
		one.reads("v1")
		one.reads("v2")
		w.check()
	})
}

// Somebody who lets the metadata snapshot go lets the pool use blocks of its trees again:
// nothing that was written ahead counts then.
func TestSnapshotLetGoMeanwhile(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	c := clock(one)
	one.attach("v2")
	v1, v2 := w.record("v1").Number, w.record("v2").Number
	clear(c.paused)
	c.verify = func(id uint32) {
		if id != v1 {
			return
		}
		pool := device("pool+" + string(rune('A'+w.header(one).Active)))
		w.must(one.kernel.Message(t.Context(), pool, devmapper.ReleaseSnapshot()))
		one.write("v1", 5)
		one.discard("v1", 5)
		one.write("v1", 6)
	}
	w.must(one.Rebuild(t.Context()))
	if c.paused[v1] == 0 || c.paused[v2] == 0 {
		t.Errorf("written while they were held back: %d blocks of v1, %d of v2", c.paused[v1], c.paused[v2])
	}
	one.reads("v1")
	one.reads("v2")
	w.check()
}

// A pool with little room for metadata holds no snapshot while guests write.
func TestNothingAheadWithoutRoom(t *testing.T) {
	w := stage(t)
	one := w.hosts[0]
	c := clock(one)
	one.tells = func(_ string, p *devmapper.PoolStatus) { p.MetadataUsed = p.MetadataTotal * 6 / 10 }
	one.attach("v2")
	if v1 := w.record("v1").Number; c.paused[v1] == 0 || c.read[v1] != 0 {
		t.Errorf("v1: %d blocks were written while it was held back, %d read before", c.paused[v1], c.read[v1])
	}
	one.tells = nil
	one.reads("v1")
	one.reads("v2")
	w.check()
}
