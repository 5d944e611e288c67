// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"errors"
	"flag"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group/grouptest"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

const perVolume = 6 // blocks

// model is a cluster whose masters die and follow one another, at any write, and
// whose hosts ask again.
type model struct {
	*world
	rt      *rapid.T
	tt      *testing.T
	hosts   map[byte]*kernel
	data    [blocks]int               // stamp of the last write to each block
	wrote   map[uint32]map[uint64]int // by volume and virtual block
	stamp   int
	objects byte
	lost    bool // the map, so that nobody can become master
}

// Whatever hosts ask, however often, and wherever masters die: after each step every
// rule holds, and every volume reads what was written to it.
func TestModel(t *testing.T) {
	if err := flag.Set("rapid.nofailfile", "true"); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{rt: rt, tt: t, hosts: map[byte]*kernel{}, wrote: map[uint32]map[uint64]int{}, objects: 10}
		g := grouptest.New(1 << 30)
		m.world = &world{nominee(t, g), rt, g, map[uuid.UUID]uint64{}}
		m.must(m.verb(func() error {
			_, err := m.Init(context.Background(), master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize})
			return err
		}))
		m.join()
		m.join()
		m.create()
		actions := map[string]func(*rapid.T){"": func(rt *rapid.T) { m.on(rt); m.check() }}
		for name, action := range map[string]func(){
			"join": m.join, "grant": m.grant, "free": m.free, "create": m.create, "attach": m.attach, "detach": m.detach, "write": m.write, "write again": m.write,
			"erase": m.erase, "clone": m.clone, "live": m.cloneAttached, "delete": m.remove, "gc": m.collect, "fence": m.fence,
			"lose the map": m.rebuildMap,
		} {
			actions[name] = func(rt *rapid.T) { m.on(rt); action() }
		}
		rt.Repeat(actions)
	})
}

func (m *model) on(rt *rapid.T) { m.rt, m.t = rt, rt }

// verb does something as the master, or several after one another, until it is done.
func (m *model) verb(do func() error) error {
	if rapid.IntRange(0, 2).Draw(m.rt, "cut") == 0 {
		m.g.CutAfter(rapid.IntRange(0, 40).Draw(m.rt, "after"))
	}
	err := do()
	for errors.Is(err, layouttest.ErrPower) {
		m.g.Boot(func() bool { return rapid.Bool().Draw(m.rt, "arrived") })
		if !m.lost && rapid.Bool().Draw(m.rt, "another master") && m.objects > 10 {
			m.follow()
		}
		err = do()
	}
	m.g.Boot(func() bool { return true })
	return err
}

// follow has another host become master; the one before finds out.
func (m *model) follow() {
	next := nominee(m.tt, m.g)
	_, err := next.Claim(context.Background(), 0)
	m.must(err)
	before := m.Master
	m.Master = next
	if _, is, err := before.Reigns(context.Background()); is || err != nil {
		m.t.Fatalf("two masters: %v", err)
	}
	if _, err := before.Collect(context.Background()); !errors.Is(err, layout.ErrStale) {
		m.t.Fatalf("the former master: %v", err)
	}
}

// asked has a host ask until it has an answer, and once more.
func (m *model) asked(n byte, r request.Request) (request.Reply, error) {
	m.sequence[id(n)]++
	var reply request.Reply
	ask := func() (err error) {
		reply, err = m.Channel(id(n)).Ask(context.Background(), m.sequence[id(n)], r)
		return err
	}
	err := m.verb(ask)
	if _, leaves := r.(request.Leave); err == nil && !leaves && rapid.Bool().Draw(m.rt, "again") {
		before, first := m.readMapOnly(), reply
		m.must(m.verb(ask))
		if diff := cmp.Diff(before, m.readMapOnly()); diff != "" || first != reply {
			m.t.Fatalf("asked again: %+v, then %+v\n%s", first, reply, diff)
		}
	}
	return reply, err
}

func (m *model) readMapOnly() layout.Map {
	current, _ := m.readMap()
	current.Claim = uuid.Nil // another master's differs
	return current
}

func (m *model) new() (uuid.UUID, string) {
	m.objects++
	return id(m.objects), "n" + id(m.objects).String()
}

func (m *model) join() {
	if len(m.hosts) >= 3 {
		return
	}
	m.objects++
	n := m.objects
	m.must(m.verb(func() error {
		_, err := m.Join(context.Background(), master.Newcomer{UUID: id(n), Name: "h" + id(n).String(), Metadata: layout.MinWindow})
		return err
	}))
	m.hosts[n] = withholding(extent.All(blocks))
}

// number is a host's.
func (m *model) number(n byte) uint32 {
	for _, h := range slices.Backward(m.readMapOnly().Hosts) {
		if h.UUID == id(n) {
			return h.Number
		}
	}
	m.t.Fatalf("host %d is not in the map", n)
	return 0
}

func (m *model) host() (byte, *kernel, bool) {
	if len(m.hosts) == 0 {
		return 0, nil, false
	}
	var all []byte
	for n := range m.objects + 1 {
		if m.hosts[n] != nil {
			all = append(all, n)
		}
	}
	n := rapid.SampledFrom(all).Draw(m.rt, "host")
	return n, m.hosts[n], true
}

// one picks a volume in one of some states, with the host that has it.
func (m *model) one(states ...layout.VolumeState) (layout.VolumeRecord, byte, bool) {
	current := m.readMapOnly()
	var fit []layout.VolumeRecord
	for _, v := range current.Volumes {
		for _, s := range states {
			if v.State == s {
				fit = append(fit, v)
			}
		}
	}
	if len(fit) == 0 {
		return layout.VolumeRecord{}, 0, false
	}
	v := rapid.SampledFrom(fit).Draw(m.rt, "volume")
	for n := range m.hosts {
		if v.State.On() && m.number(n) == v.Host {
			return v, n, true
		}
	}
	return v, 0, !v.State.On()
}

func (m *model) grant() {
	n, k, ok := m.host()
	if !ok {
		return
	}
	_, err := m.asked(n, request.Grant{Blocks: rapid.Uint64Range(1, 12).Draw(m.rt, "blocks"), Least: 1})
	if errors.Is(err, failure.NoSpace) {
		return
	}
	m.must(err)
	m.hosts[n] = m.rebuild(n, k, func(layout.VolumeRecord) bool { return false })
}

func (m *model) rebuild(n byte, k *kernel, coming func(layout.VolumeRecord) bool) *kernel {
	return rebuilt(m.readMapOnly(), m.number(n), k, func(v layout.VolumeRecord) layout.Mapping { return m.stored(v.Number) }, coming)
}

func (m *model) free() {
	n, k, ok := m.host()
	if !ok {
		return
	}
	balloon := &thin{maps: map[uint64]place{}}
	k.devices[k.local] = balloon
	k.local++
	var taken extent.Set
	for v := range rapid.Uint64Range(1, 6).Draw(m.rt, "blocks") {
		if b, ok := k.allocate(blocks); ok {
			balloon.maps[v] = place{b, k.time}
			taken = taken.Union(extent.Of(extent.Extent{Start: b, Length: 1}))
		}
	}
	for _, r := range request.Returns(taken) {
		_, err := m.asked(n, r)
		m.must(err)
	}
}

func (m *model) create() {
	n, _, ok := m.host()
	if !ok || len(m.readMapOnly().Volumes) >= 5 {
		return
	}
	object, name := m.new()
	reply, err := m.asked(n, request.Create{ID: object, Name: name, Size: perVolume * blockSize})
	m.must(err)
	m.wrote[reply.Number] = map[uint64]int{}
}

func (m *model) attach() {
	v, _, is := m.one(layout.Offline)
	n, k, ok := m.host()
	if !is || !ok {
		return
	}
	_, err := m.asked(n, request.BeginAttach{Volume: v.Number})
	m.must(err)
	m.check()
	if rapid.IntRange(0, 3).Draw(m.rt, "fails") == 0 {
		m.put(v.Number, m.stored(v.Number).Runs...)
		_, err = m.asked(n, request.FinishDetach{Volume: v.Number})
		m.must(err)
		return
	}
	m.hosts[n] = m.rebuild(n, k, func(c layout.VolumeRecord) bool { return c.Number == v.Number })
	m.check()
	_, err = m.asked(n, request.FinishAttach{Volume: v.Number})
	m.must(err)
}

// device is a volume at its host.
func (m *model) device(v layout.VolumeRecord, n byte) *thin { return m.hosts[n].devices[v.Number] }

func (m *model) detach() {
	v, n, ok := m.one(layout.Attached)
	if !ok {
		return
	}
	_, err := m.asked(n, request.BeginDetach{Volume: v.Number})
	m.must(err)
	m.put(v.Number, mapping(m.readMapOnly(), v, m.device(v, n)).Runs...)
	m.check()
	_, err = m.asked(n, request.FinishDetach{Volume: v.Number})
	m.must(err)
}

func (m *model) write() {
	v, n, ok := m.one(layout.Attached)
	if !ok {
		return
	}
	k, d := m.hosts[n], m.device(v, n)
	virtual := rapid.Uint64Range(0, perVolume-1).Draw(m.rt, "block")
	p, mapped := d.maps[virtual]
	if !mapped || p.time < d.snap {
		b, ok := k.allocate(blocks)
		if !ok {
			return
		}
		p = place{b, k.time}
		d.maps[virtual] = p
	}
	m.stamp++
	m.data[p.block], m.wrote[v.Number][virtual] = m.stamp, m.stamp
}

func (m *model) erase() {
	if v, n, ok := m.one(layout.Attached); ok {
		virtual := rapid.Uint64Range(0, perVolume-1).Draw(m.rt, "block")
		delete(m.device(v, n).maps, virtual)
		delete(m.wrote[v.Number], virtual)
	}
}

func (m *model) clone() {
	v, _, is := m.one(layout.Offline)
	n, _, ok := m.host()
	if !is || !ok || len(m.readMapOnly().Volumes) >= 5 {
		return
	}
	object, name := m.new()
	reply, err := m.asked(n, request.Clone{Of: v.Number, ID: object, Name: name})
	m.must(err)
	m.wrote[reply.Number] = maps.Clone(m.wrote[v.Number])
}

func (m *model) cloneAttached() {
	v, n, ok := m.one(layout.Attached)
	if !ok || len(m.readMapOnly().Volumes) >= 5 {
		return
	}
	k, d := m.hosts[n], m.device(v, n)
	k.time++
	d.snap = k.time
	hidden := &thin{snap: k.time, maps: maps.Clone(d.maps)}
	k.devices[k.local] = hidden
	k.local++
	m.put(v.Number, mapping(m.readMapOnly(), v, hidden).Runs...)
	object, name := m.new()
	reply, err := m.asked(n, request.CloneAttached{Of: v.Number, ID: object, Name: name})
	m.must(err)
	m.wrote[reply.Number] = maps.Clone(m.wrote[v.Number])
}

func (m *model) remove() {
	v, _, is := m.one(layout.Offline)
	if n, _, ok := m.host(); ok && is {
		_, err := m.asked(n, request.Delete{Volume: v.Number})
		m.must(err)
	}
}

func (m *model) collect() {
	m.must(m.verb(func() error { _, err := m.Collect(context.Background()); return err }))
	list, err := m.g.List(context.Background())
	m.must(err)
	for _, lv := range list {
		if object, suffix, _ := layout.ParseName(lv.Name); suffix == layout.Thin {
			found := false
			for _, v := range m.readMapOnly().Volumes {
				found = found || v.UUID == object
			}
			if !found {
				m.t.Fatalf("%s is left", lv.Name)
			}
		}
	}
}
