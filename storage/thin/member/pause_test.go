// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"context"
	"iter"
	"testing"

	"diskhook/storage/thin/member"
	"diskhook/storage/thin/metadata"
)

// clocked counts what is written and read back of devices while guests are held back.
type clocked struct {
	member.Windows
	h      *node
	paused map[uint32]uint64 // blocks, by device
	read   map[uint32]uint64 // of those that were written ahead
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
	c := &clocked{Windows: one.Windows, h: one, paused: map[uint32]uint64{}, read: map[uint32]uint64{}}
	one.Windows = c
	one.attach("v2")
	numbers := map[string]uint32{}
	m, _ := w.readMap()
	for _, v := range m.Volumes {
		numbers[v.Name] = v.Number
	}
	if n := c.paused[numbers["v1"]]; n == 0 {
		t.Fatal("nothing of v1, which may change until it is held back, was written afterwards")
	}
	if n := c.paused[numbers["v2"]]; n != 0 {
		t.Errorf("%d blocks of v2 were written while v1 was held back", n)
	}
	if c.read[numbers["v2"]] == 0 {
		t.Error("v2 was not read back before v1 was held back")
	}
	one.reads("v1")
	one.reads("v2")
	w.check()
}
