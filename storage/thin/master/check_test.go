// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group/grouptest"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// settled is a cluster whose host one has a volume, and whose headers and metadata
// are as its host would have them.
func settled(t *testing.T) *world {
	w := newWorld(t)
	w.join(1, "one")
	for sequence, r := range []request.Request{request.Grant{Blocks: 10}, request.Create{ID: id(9), Name: "vol", Size: 8 * blockSize}, request.BeginAttach{Volume: 1}} {
		dev := w.disk(layout.Host.Name(id(1)))
		header, stamp, err := layout.ReadHost(dev, clusterID, id(1))
		w.must(err)
		header.Sequence = uint64(sequence + 1)
		_, err = layout.CommitHost(dev, clusterID, id(1), stamp, 1, header)
		w.must(err)
		w.done(1, r)
	}
	k := withholding(extent.All(blocks).Minus(extent.Of(extent.Extent{Start: 1, Length: 10})))
	k.devices[1] = &thin{generation: 2, snap: 1, maps: map[uint64]place{0: {1, 1}, 4: {2, 1}}}
	w.commit(1, k)
	return w
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(w *world)
		options master.CheckOptions
		want    []string // object, rule and part of the text, and of the hint
	}{
		"all is well":                 {func(*world) {}, master.CheckOptions{Offline: true}, nil},
		"online":                      {func(w *world) { w.rot(1) }, master.CheckOptions{}, nil},
		"damaged metadata":            {func(w *world) { w.rot(1) }, master.CheckOptions{Offline: true}, []string{"host one|0|damaged|recover --repair one"}},
		"metadata that give too much": {func(w *world) { w.commit(1, withholding(nil)) }, master.CheckOptions{Offline: true}, []string{"cluster|2|are not its own|"}},
		"the same, known from elsewhere": {
			func(*world) {}, master.CheckOptions{Images: map[uint32]invariant.Image{1: withholding(nil).image(blocks)}}, []string{"cluster|2|are not its own|"},
		},
		"a torn map": {func(w *world) { w.g.Disk(layout.MapName).Rot(8 << 10); w.g.Disk(layout.MapName).Rot(mapMiddle(w)) }, master.CheckOptions{}, []string{"map|0|damaged|check --rebuild-map"}},
		"a mapping": {func(w *world) { w.g.Disk(layout.Thin.Name(id(9))).Rot(8 << 10) }, master.CheckOptions{}, []string{
			"volume vol|0|damaged|thin check", "cluster|8|no mapping of generation 1|",
		}},
		"the header": {func(w *world) {
			w.g.Disk(layout.Host.Name(id(1))).Rot(9)
			w.g.Disk(layout.Host.Name(id(1))).Rot(4096 - 500)
		}, master.CheckOptions{}, []string{"host one|0|damaged|recover"}},
		"another host's":  {func(w *world) { w.rename(1, 7) }, master.CheckOptions{}, []string{"host one|0|of host 7|recover one"}},
		"a LUN that grew": {func(w *world) { w.g.Disk(layout.DataName).Grow(10 * blockSize) }, master.CheckOptions{}, []string{"lv global-thin-pool|0|has grown|thin grow"}},
		"what nobody has": {func(w *world) {
			w.must(w.g.Create(t.Context(), layout.Thin.Name(id(5)), 8192))
			w.must(w.g.Create(t.Context(), layout.Host.Name(id(5)), 8192))
		}, master.CheckOptions{}, []string{"lv " + id(5).String() + ".host|0|does not have it|init-host", "lv " + id(5).String() + ".thin|0|does not have it|thin gc"}},
		"a fenced host": {func(w *world) { w.must(w.Fence(t.Context(), "one", 0, "word")) }, master.CheckOptions{}, []string{"host one|0|fenced (word)|recover one"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			c.spoil(w)
			found, err := w.Check(t.Context(), c.options)
			if err != nil {
				t.Fatal(err)
			}
			ok := len(found) == len(c.want)
			for i := range min(len(found), len(c.want)) {
				part := strings.Split(c.want[i], "|")
				f := found[i]
				ok = ok && f.Object == part[0] && string(rune('0'+f.Rule)) == part[1] && strings.Contains(f.Text, part[2]) && strings.Contains(f.Hint, part[3])
			}
			if !ok {
				t.Errorf("%+v, want %q", found, c.want)
			}
		})
	}
}

// mapMiddle is where the contents of the map's other copy are.
func mapMiddle(w *world) int64 {
	size := w.g.Disk(layout.MapName).Size()
	return size - 4096
}

// rename gives a host's header another number.
func (w *world) rename(n byte, number uint32) {
	dev := w.disk(layout.Host.Name(id(n)))
	header, stamp, err := layout.ReadHost(dev, clusterID, id(n))
	w.must(err)
	header.Number = number
	_, err = layout.CommitHost(dev, clusterID, id(n), stamp, 1, header)
	w.must(err)
}

// A group that is not empty is not made a cluster of.
func TestInitRefused(t *testing.T) {
	ctx := t.Context()
	shape := master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize}
	for name, c := range map[string]struct {
		before func(g *grouptest.Group)
		want   error
	}{
		"a cluster that is there": {func(g *grouptest.Group) { _, _ = nominee(t, g).Init(ctx, shape) }, layout.ErrExists},
		"its map is gone": {func(g *grouptest.Group) {
			m := nominee(t, g)
			_, _ = m.Init(ctx, shape)
			_, _ = m.Join(ctx, master.Newcomer{UUID: id(1), Name: "one"})
			_ = g.Remove(ctx, layout.MapName)
		}, layout.ErrExists},
		"somebody's data": {func(g *grouptest.Group) {
			_ = g.Create(ctx, layout.DataName, 1<<20)
			g.Disk(layout.DataName).Write(0, []byte("an image of a guest"))
		}, layout.ErrForeign},
		"another cluster's data": {func(g *grouptest.Group) {
			m := nominee(t, g)
			m.Cluster = uuid.UUID{7}
			_, _ = m.Init(ctx, shape)
			_ = g.Remove(ctx, layout.MapName)
		}, layout.ErrOtherCluster},
		"too little room": {func(g *grouptest.Group) { g.Capacity = 1 << 20 }, failure.NoSpace},
	} {
		t.Run(name, func(t *testing.T) {
			g := grouptest.New(1 << 30)
			c.before(g)
			before := contents(t, g)
			_, err := nominee(t, g).Init(ctx, shape)
			if !errors.Is(err, c.want) || failure.HintOf(err) == "" {
				t.Fatalf("%v, hint %q", err, failure.HintOf(err))
			}
			if diff := cmp.Diff(before, contents(t, g)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// contents are the beginnings of all volumes.
func contents(t *testing.T, g *grouptest.Group) map[string][4096]byte {
	all := map[string][4096]byte{}
	list, err := g.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, lv := range list {
		all[lv.Name] = [4096]byte(readDisk(t, g.Disk(lv.Name)))
	}
	return all
}

// A pool that became longer is used once every host withholds what is new.
func TestGrow(t *testing.T) {
	ctx := t.Context()
	w := settled(t)
	for range 2 {
		_, err := w.Grow(ctx, (blocks+20)*blockSize)
		if !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "rebuild` on one,") {
			t.Fatalf("%v, hint %q", err, failure.HintOf(err))
		}
	}
	if m, _ := w.readMap(); m.Blocks != blocks {
		t.Fatal("the map has blocks that a host could allocate")
	}
	dev := w.disk(layout.Host.Name(id(1)))
	header, stamp, err := layout.ReadHost(dev, clusterID, id(1))
	w.must(err)
	header.Blocks = blocks + 20
	_, err = layout.CommitHost(dev, clusterID, id(1), stamp, 1, header)
	w.must(err)
	for range 2 {
		if g, err := w.Grow(ctx, 0); err != nil || g.Blocks != blocks+20 {
			t.Fatal(g, err)
		}
	}
	m, _ := w.readMap()
	if free := owned(m, layout.Free, 0).Blocks(); m.Blocks != blocks+20 || free != blocks+20-1-10 {
		t.Errorf("%d blocks, %d free", m.Blocks, free)
	}
	if g, err := layout.ReadLabel(w.disk(layout.DataName), clusterID); err != nil || g.Blocks != blocks+20 {
		t.Error(g, err)
	}
}

// readDisk is the beginning of a disk.
func readDisk(t *testing.T, d *layouttest.Disk) []byte {
	t.Helper()
	b := directio.Buffer(4096)
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// copyDisk makes a disk what another one is.
func copyDisk(t *testing.T, from, to *layouttest.Disk) {
	t.Helper()
	b := directio.Buffer(from.Size())
	if _, err := from.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	to.Write(0, b)
}
