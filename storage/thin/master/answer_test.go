// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/request"
)

func owned(m layout.Map, kind layout.OwnerKind, number uint32) extent.Set {
	return m.Owned(layout.Owner{Kind: kind, Number: number})
}

// A volume's life, with two hosts.
func TestVolume(t *testing.T) {
	w := newWorld(t)
	one, two := w.join(1, "one"), w.join(2, "two")
	if r := w.done(1, request.Grant{Blocks: 10}); r.Blocks != 10 {
		t.Fatalf("%+v", r)
	}
	v := w.done(1, request.Create{ID: id(9), Name: "vol", Size: 8 * blockSize})
	if v.Number != 1 || v.Generation != 1 {
		t.Fatalf("%+v", v)
	}
	if r := w.done(1, request.BeginAttach{Volume: v.Number}); r.Generation != 2 {
		t.Fatalf("%+v", r)
	}
	w.done(1, request.FinishAttach{Volume: v.Number})
	if _, err := w.ask(2, request.BeginAttach{Volume: v.Number}); !errors.Is(err, failure.Conflict) || !errors.Is(err, request.ErrRefused) || failure.HintOf(err) == "" {
		t.Fatalf("attached twice: %v", err)
	}
	m, _ := w.readMap()
	own := owned(m, layout.OfHost, one)
	w.done(1, request.BeginDetach{Volume: v.Number})
	w.put(v.Number, layout.MappingRun{Virtual: 2, Physical: own[0].Start, Length: 3})
	w.done(1, request.FinishDetach{Volume: v.Number})
	m, _ = w.readMap()
	if got := owned(m, layout.OfVolume, v.Number).Blocks(); got != 3 || w.volume(v.Number).State != layout.Offline || w.volume(v.Number).Generation != 3 {
		t.Fatalf("%d blocks, %+v", got, w.volume(v.Number))
	}

	c := w.done(2, request.Clone{Of: v.Number, ID: id(8), Name: "copy"})
	for _, number := range []uint32{v.Number, c.Number} {
		want := layout.Mapping{Number: number, BlockSize: blockSize, Size: 8 * blockSize, Runs: []layout.MappingRun{{Virtual: 2, Physical: own[0].Start, Length: 3, Base: 1}}}
		if diff := cmp.Diff(want, w.stored(number)); diff != "" {
			t.Error(diff)
		}
	}
	w.done(2, request.BeginAttach{Volume: c.Number})
	w.done(2, request.FinishAttach{Volume: c.Number})
	if r := w.done(2, request.Resize{Volume: c.Number, Size: 16 * blockSize}); r.Generation != 2 || w.volume(c.Number).Size != 16*blockSize {
		t.Errorf("%+v", r)
	}

	// A clone of what host two has written since: block 5 of the volume.
	w.done(2, request.Grant{Blocks: 4})
	m, _ = w.readMap()
	fresh := owned(m, layout.OfHost, two)[0].Start
	w.put(c.Number, layout.MappingRun{Virtual: 2, Physical: own[0].Start, Length: 3, Base: 1}, layout.MappingRun{Virtual: 5, Physical: fresh, Length: 1})
	l := w.done(2, request.CloneAttached{Of: c.Number, ID: id(7), Name: "live"})
	want := []layout.MappingRun{{Virtual: 2, Physical: own[0].Start, Length: 3, Base: 1}, {Virtual: 5, Physical: fresh, Length: 1, Base: 2}}
	if diff := cmp.Diff(want, w.stored(l.Number).Runs); diff != "" || w.volume(l.Number).Size != 16*blockSize {
		t.Error(diff)
	}
	m, _ = w.readMap()
	if got := owned(m, layout.OfBase, 2); !got.Contains(fresh) || got.Blocks() != 1 {
		t.Error(got)
	}

	generation := w.volume(l.Number).Generation
	if _, err := w.ask(1, request.Delete{Volume: l.Number, Generation: generation + 1}); !errors.Is(err, failure.Conflict) || failure.HintOf(err) == "" {
		t.Errorf("deleted in another generation: %v", err)
	}
	w.done(1, request.Delete{Volume: l.Number, Generation: generation})
	if w.g.Disk(layout.Thin.Name(id(7))) != nil {
		t.Error("the deleted volume's mapping is still there")
	}
	if _, err := w.ask(1, request.Delete{Volume: l.Number}); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
}

// A request that is asked again is done once, and answered as the first time.
func TestAgain(t *testing.T) {
	w := newWorld(t)
	one := w.join(1, "one")
	ctx := t.Context()
	for sequence, r := range []request.Request{
		request.Create{ID: id(9), Name: "vol", Size: 512}, request.Grant{Blocks: 5}, request.Clone{Of: 1, ID: id(8), Name: "copy"}, request.BeginAttach{Volume: 1},
	} {
		first, err := w.Channel(id(1)).Ask(ctx, uint64(sequence+1), r)
		w.must(err)
		before, _ := w.readMap()
		second, err := w.Channel(id(1)).Ask(ctx, uint64(sequence+1), r)
		after, _ := w.readMap()
		if diff := cmp.Diff(before, after); err != nil || first != second || diff != "" {
			t.Errorf("%T: %+v and %+v, %v\n%s", r, first, second, err, diff)
		}
	}
	if _, err := w.Channel(id(1)).Ask(ctx, 2, request.Grant{Blocks: 5}); !errors.Is(err, failure.Conflict) {
		t.Errorf("an older request: %v", err)
	}
	m, _ := w.readMap()
	if got := owned(m, layout.OfHost, one).Blocks(); got != 5 {
		t.Errorf("%d blocks", got)
	}
}

func TestSpace(t *testing.T) {
	w := newWorld(t)
	one := w.join(1, "one")
	if _, err := w.ask(1, request.Grant{Blocks: blocks}); !errors.Is(err, failure.NoSpace) {
		t.Fatal(err)
	}
	if r := w.done(1, request.Grant{Blocks: blocks, Least: 1}); r.Blocks != blocks-1 {
		t.Fatalf("%+v", r)
	}
	if r := w.done(1, request.Return{Extents: request.Extents{4, 2, 10, 1}}); r.Blocks != blocks-4 {
		t.Fatalf("%+v", r)
	}
	if _, err := w.ask(1, request.Return{Extents: request.Extents{0, 1}}); !errors.Is(err, failure.Problems) {
		t.Errorf("the label's block: %v", err)
	}
	w.done(1, request.Create{ID: id(9), Name: "vol", Size: 512})
	w.done(1, request.Room{Volume: 1, Bytes: 5 << 20})
	w.done(1, request.Room{Bytes: 20 << 20})
	if a, b := w.g.Disk(layout.Thin.Name(id(9))).Size(), w.g.Disk(layout.Host.Name(id(1))).Size(); a != 5<<20 || b != 20<<20 {
		t.Errorf("%d and %d bytes", a, b)
	}
	if _, err := w.ask(1, request.Room{Bytes: 1 << 31}); !errors.Is(err, failure.NoSpace) {
		t.Error(err)
	}
	w.done(1, request.BeginAttach{Volume: 1})
	if _, err := w.ask(1, request.Leave{}); !errors.Is(err, failure.Conflict) {
		t.Errorf("left with a volume: %v", err)
	}
	w.put(1)
	w.done(1, request.FinishDetach{Volume: 1})
	if r := w.done(1, request.Leave{}); r.Blocks != 0 {
		t.Errorf("%+v", r)
	}
	m, _ := w.readMap()
	if m.Hosts[0].State != layout.Recovered || !owned(m, layout.OfHost, one).Empty() {
		t.Errorf("%+v", m.Hosts)
	}
	if _, err := w.ask(1, request.Grant{Blocks: 1}); !errors.Is(err, failure.Conflict) {
		t.Errorf("a host that left: %v", err)
	}
}

// What a host says of a mapping is believed as far as the map allows it.
func TestForeignMapping(t *testing.T) {
	w := newWorld(t)
	w.join(1, "one")
	two := w.join(2, "two")
	w.done(1, request.Create{ID: id(9), Name: "vol", Size: 8 * blockSize})
	w.done(2, request.Grant{Blocks: 5})
	w.done(1, request.BeginAttach{Volume: 1})
	w.done(1, request.FinishAttach{Volume: 1})
	m, stamp := w.readMap()
	foreign := owned(m, layout.OfHost, two)[0].Start
	for name, run := range map[string]layout.MappingRun{
		"blocks of another host":        {Physical: foreign, Length: 1},
		"a base that it has no part of": {Physical: foreign, Length: 1, Base: 4},
	} {
		w.put(1, run)
		if _, err := w.ask(1, request.CloneAttached{Of: 1, ID: id(8), Name: "x"}); !errors.Is(err, failure.Problems) || failure.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := layout.Mapping{Number: 7, BlockSize: blockSize, Size: 512}
	v := w.volume(1)
	w.must(layout.WriteMapping(w.disk(layout.Thin.Name(v.UUID)), clusterID, v.UUID, v.Stored(), v.Generation+1, stamp.Epoch, other))
	if _, err := w.ask(1, request.CloneAttached{Of: 1, ID: id(8), Name: "x"}); !errors.Is(err, failure.Problems) {
		t.Errorf("another volume's mapping: %v", err)
	}
	if after, _ := w.readMap(); !cmp.Equal(m.Volumes, after.Volumes) || !cmp.Equal(m.Owners, after.Owners) {
		t.Error("the map changed")
	}
}
