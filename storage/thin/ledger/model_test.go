// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

// Whatever hosts, guests and master do, and wherever they stop: after each step
// every rule holds and every volume reads what was written to it.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range 2 {
			w.join()
		}
		w.create()
		t.Repeat(map[string]func(*rapid.T){
			"":       func(t *rapid.T) { w.T = t; w.check() },
			"join":   w.do(w.join),
			"grant":  w.do(w.grant),
			"use":    w.do(w.use),
			"free":   w.do(w.free),
			"create": w.do(w.create),
			"attach": w.do(w.attach),
			"settle": w.do(w.settle),
			"detach": w.do(w.detach),
			"write":  w.do(w.write),
			"write ": w.do(w.write),
			"erase":  w.do(w.erase),
			"clone":  w.do(w.clone),
			"live":   w.do(w.cloneAttached),
			"delete": w.do(w.remove),
			"gc":     w.do(w.collect),
			"fence":  w.do(w.fence),
			"again":  w.do(w.recover),
			"new":    w.do(w.renew),
		})
	})
}

func (w *world) do(action func()) func(*rapid.T) {
	return func(t *rapid.T) { w.T = t; action() }
}

func (w *world) join() {
	if len(w.members()) >= 3 {
		return
	}
	id, name := w.newName()
	m, number, err := ledger.Join(w.m, id, name)
	w.commit(m, err)
	again, same, err := ledger.Join(w.m, id, name)
	if err != nil || same != number || !cmp.Equal(again, w.m) {
		w.Fatalf("joined as %d and %d, %v", number, same, err)
	}
	w.kernels[number] = &kernel{time: 1, local: layout.FirstLocal, devices: map[uint32]*thin{0: identity(extent.All(blocks))}}
}

func (w *world) grant() {
	h, ok := w.host()
	if !ok {
		return
	}
	n := rapid.Uint64Range(1, 12).Draw(w.T, "blocks")
	m, given, err := ledger.Grant(w.m, h, n)
	if errors.Is(err, failure.NoSpace) {
		return
	}
	if given.Blocks() != n || !w.owned(layout.Free, 0).Covers(given) {
		w.Fatalf("granted %v of %v", given, w.owned(layout.Free, 0))
	}
	w.commit(m, err)
}

// use releases from disk 0 what is the host's.
func (w *world) use() {
	if h, ok := w.host(); ok {
		for b := range w.kernels[h].devices[0].maps {
			if w.usable(h).Contains(b) {
				delete(w.kernels[h].devices[0].maps, b)
			}
		}
	}
}

// free gives slack back with a balloon.
func (w *world) free() {
	h, ok := w.host()
	if !ok {
		return
	}
	k, balloon := w.kernels[h], &thin{maps: map[uint64]at{}}
	k.devices[k.local] = balloon
	k.local++
	var taken extent.Set
	for v := range rapid.Uint64Range(1, 6).Draw(w.T, "blocks") {
		if b, ok := k.available(); ok {
			balloon.maps[v] = at{b, k.time}
			taken = taken.Union(extent.Of(extent.Extent{Start: b, Length: 1}))
		}
	}
	if w.stops() {
		return
	}
	w.commit(ledger.Return(w.m, h, taken))
	if again, err := ledger.Return(w.m, h, taken); err != nil || !cmp.Equal(again.Owners, w.m.Owners) {
		w.Fatalf("returned twice: %v", err)
	}
}

func (w *world) create() {
	if len(w.m.Volumes) >= 5 {
		return
	}
	id, name := w.newName()
	m, number, err := ledger.Create(w.m, id, name, perVolume*blockSize)
	w.must(err)
	w.store(number, 1, layout.Mapping{Number: number, BlockSize: blockSize, Size: perVolume * blockSize})
	w.wrote[number] = map[uint64]int{}
	w.commit(m, nil)
}

func (w *world) attach() {
	v, is := w.one(layout.Offline)
	h, ok := w.host()
	if !ok || !is {
		return
	}
	w.commit(ledger.BeginAttach(w.m, v.Number, h, w.stored[v.Number][v.Stored()]))
	if w.stops() {
		return
	}
	w.settleAttach(v.Number)
}

// settle goes on with an attach that stopped, or takes it back.
func (w *world) settle() {
	v, ok := w.one(layout.Attaching)
	if !ok {
		return
	}
	if rapid.Bool().Draw(w.T, "go on") {
		w.settleAttach(v.Number)
		return
	}
	if w.active(v) == nil {
		m := w.stored[v.Number][v.Stored()]
		w.store(v.Number, v.Generation+1, m)
		w.commit(ledger.FinishDetach(w.m, v.Number, v.Host, m, false))
	}
}

func (w *world) volume(number uint32) layout.VolumeRecord {
	i := slices.IndexFunc(w.m.Volumes, func(v layout.VolumeRecord) bool { return v.Number == number })
	return w.m.Volumes[i]
}

func (w *world) settleAttach(number uint32) {
	v := w.volume(number)
	if !slices.Contains(w.members(), v.Host) {
		return
	}
	if w.active(v) == nil {
		w.rebuild(v.Host, v)
		w.check()
		if w.stops() {
			return
		}
	}
	w.commit(ledger.FinishAttach(w.m, number, v.Host))
}

func (w *world) detach() {
	v, ok := w.one(layout.Attached, layout.Detaching)
	if !ok || !slices.Contains(w.members(), v.Host) {
		return
	}
	w.commit(ledger.BeginDetach(w.m, v.Number, v.Host))
	m := w.mapping(v, w.active(v))
	w.store(v.Number, v.Generation+1, m)
	w.check()
	if w.stops() {
		return
	}
	w.commit(ledger.FinishDetach(w.m, v.Number, v.Host, m, false))
}

func (w *world) write() {
	v, ok := w.one(layout.Attached)
	if !ok || !slices.Contains(w.members(), v.Host) {
		return
	}
	k, d := w.kernels[v.Host], w.active(v)
	virtual := rapid.Uint64Range(0, perVolume-1).Draw(w.T, "block")
	a, mapped := d.maps[virtual]
	if !mapped || a.time < d.snap {
		b, ok := k.available()
		if !ok {
			return
		}
		a = at{b, k.time}
		d.maps[virtual] = a
	}
	w.stamp++
	w.data[a.block], w.wrote[v.Number][virtual] = w.stamp, w.stamp
}

func (w *world) erase() {
	if v, ok := w.one(layout.Attached); ok && slices.Contains(w.members(), v.Host) {
		virtual := rapid.Uint64Range(0, perVolume-1).Draw(w.T, "block")
		delete(w.active(v).maps, virtual)
		delete(w.wrote[v.Number], virtual)
	}
}

// shared is a mapping in which what was private is of a base.
func shared(m layout.Mapping, number, base uint32) layout.Mapping {
	m.Number, m.Runs = number, slices.Clone(m.Runs)
	for i := range m.Runs {
		if m.Runs[i].Base == 0 {
			m.Runs[i].Base = base
		}
	}
	return m
}

func (w *world) clone() {
	v, ok := w.one(layout.Offline)
	if !ok || len(w.m.Volumes) >= 5 {
		return
	}
	id, name := w.newName()
	m, number, base, err := ledger.Clone(w.m, v.Number, id, name)
	w.must(err)
	old := w.stored[v.Number][v.Stored()]
	w.store(v.Number, v.Generation+1, shared(old, v.Number, base))
	w.store(number, 1, shared(old, number, base))
	if w.stops() {
		return // nothing that was stored counts
	}
	w.wrote[number] = maps.Clone(w.wrote[v.Number])
	w.commit(m, nil)
}

func (w *world) cloneAttached() {
	v, ok := w.one(layout.Attached)
	if !ok || len(w.m.Volumes) >= 5 || !slices.Contains(w.members(), v.Host) {
		return
	}
	k, d := w.kernels[v.Host], w.active(v)
	k.time++
	d.snap = k.time
	hidden := &thin{snap: k.time, maps: maps.Clone(d.maps)}
	k.devices[k.local] = hidden
	k.local++
	w.check()
	if w.stops() {
		return
	}
	held := w.mapping(v, hidden)
	id, name := w.newName()
	m, number, base, err := ledger.CloneAttached(w.m, v.Number, v.Host, held.Private(), id, name)
	w.must(err)
	w.store(number, 1, shared(held, number, base))
	w.wrote[number] = maps.Clone(w.wrote[v.Number])
	w.commit(m, nil)
}

func (w *world) remove() {
	if v, ok := w.one(layout.Offline, layout.Suspect); ok {
		w.commit(ledger.Delete(w.m, v.Number))
	}
}

func (w *world) collect() {
	stored := map[uint32]layout.Mapping{}
	for _, v := range w.m.Volumes {
		stored[v.Number] = w.stored[v.Number][v.Stored()]
	}
	for base := uint32(1); base < w.m.NextBase; base++ {
		m, _, err := ledger.Collect(w.m, base, stored)
		w.commit(m, err)
	}
}

func (w *world) fence() {
	if h, ok := w.host(); ok && rapid.IntRange(0, 2).Draw(w.T, "fenced") == 0 {
		w.commit(ledger.Fence(w.m, h, "a test's word"))
		w.recover()
	}
}

// recover goes on with hosts that are fenced.
func (w *world) recover() {
	for _, h := range w.m.Hosts {
		if h.State != layout.Fenced {
			continue
		}
		for _, v := range w.m.Volumes {
			if v.Host != h.Number {
				continue
			}
			m := w.stored[v.Number][v.Stored()]
			if d := w.active(v); d != nil {
				m = w.mapping(v, d)
			}
			w.store(v.Number, v.Generation+1, m)
			w.commit(ledger.FinishDetach(w.m, v.Number, h.Number, m, false))
			w.check()
			if w.stops() {
				return
			}
		}
		w.commit(ledger.FinishRecovery(w.m, h.Number))
		delete(w.kernels, h.Number)
	}
}

// renew is a rebuild of a host's metadata.
func (w *world) renew() {
	if h, ok := w.host(); ok {
		w.rebuild(h)
	}
}
