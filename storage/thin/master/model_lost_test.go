// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"errors"

	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/master"
)

// fence takes a host out, as it is, and may bring it back.
func (m *model) fence() {
	n, k, ok := m.host()
	if !ok || rapid.IntRange(0, 2).Draw(m.rt, "fenced") != 0 {
		return
	}
	ctx, name := context.Background(), "h"+id(n).String()
	m.world.commit(n, k)
	m.must(m.verb(func() error { return m.Fence(ctx, name, 0, "a test's word") }))
	m.must(m.verb(func() error { _, err := m.Recover(ctx, name, false); return err }))
	delete(m.hosts, n)
	if rapid.Bool().Draw(m.rt, "back") {
		m.must(m.verb(func() error {
			_, err := m.Join(ctx, master.Newcomer{UUID: id(n), Name: name, Rejoin: true, Metadata: layout.MinWindow})
			return err
		}))
		m.hosts[n], m.sequence[id(n)] = withholding(extent.All(blocks)), 0
		return
	}
	m.must(m.verb(func() error {
		if err := m.RemoveHost(ctx, name); !errors.Is(err, failure.NotFound) {
			return err
		}
		return nil // removed before the power went off
	}))
}

// rebuildMap loses copies of the map while no host has a pool, and has it made anew.
func (m *model) rebuildMap() {
	if rapid.IntRange(0, 3).Draw(m.rt, "lost") != 0 {
		return
	}
	m.collect() // with no copy of the map left, a deleted volume's mapping would bring it back
	before := m.readMapOnly()
	for n, k := range m.hosts {
		m.world.commit(n, k)
	}
	disk := m.g.Disk(layout.MapName)
	switch rapid.IntRange(0, 3).Draw(m.rt, "copies") {
	case 0:
		disk.Write(0, make([]byte, 8192))
	case 1:
		m.must(m.g.Remove(context.Background(), layout.MapName))
	case 2:
		loseHeader(disk, 0)
	default:
		loseHeader(disk, 0)
		loseHeader(disk, 4096)
	}
	m.lost = true
	m.must(m.verb(func() error { _, err := m.RebuildMap(context.Background(), true); return err }))
	m.lost = false
	after := m.readMapOnly()
	if len(before.Volumes) != len(after.Volumes) {
		m.t.Fatalf("%d volumes were there, %d are", len(before.Volumes), len(after.Volumes))
	}
	for n := range m.objects + 1 {
		if m.hosts[n] == nil {
			continue
		}
		m.must(m.verb(func() error {
			_, err := m.Join(context.Background(), master.Newcomer{UUID: id(n), Name: "h" + id(n).String(), Rejoin: true, Metadata: layout.MinWindow})
			return err
		}))
		m.hosts[n], m.sequence[id(n)] = withholding(extent.All(blocks)), 0
	}
}

// loseHeader spoils both sectors of a header.
func loseHeader(disk *layouttest.Disk, at int64) {
	disk.Rot(at + 20)
	disk.Rot(at + 4096 - 512 + 20)
}

// check wants every rule kept, and every volume to have what was written to it.
func (m *model) check() {
	m.t.Helper()
	current := m.readMapOnly()
	c := invariant.Cluster{Map: current, Mappings: map[uint32]layout.Mapping{}, Images: map[uint32]invariant.Image{}}
	at := map[uint32]*kernel{}
	for n, k := range m.hosts {
		at[m.number(n)] = k
		c.Images[m.number(n)] = k.image(blocks)
	}
	for _, v := range current.Volumes {
		c.Mappings[v.Number] = m.stored(v.Number)
	}
	if found := invariant.Check(c); len(found) != 0 {
		m.t.Fatalf("%v", found)
	}
	for _, v := range current.Volumes {
		has := map[uint64]uint64{}
		if d := at[v.Host]; v.State.On() && d != nil && d.devices[v.Number] != nil && d.devices[v.Number].generation == v.Generation {
			for virtual, p := range d.devices[v.Number].maps {
				has[virtual] = p.block
			}
		} else {
			for _, r := range c.Mappings[v.Number].Runs {
				for i := range r.Length {
					has[r.Virtual+i] = r.Physical + i
				}
			}
		}
		for virtual := range uint64(perVolume) {
			want, written := m.wrote[v.Number][virtual]
			block, mapped := has[virtual]
			if mapped != written || mapped && m.data[block] != want {
				m.t.Fatalf("volume %s: block %d is at %d (%t) with %d, want %d (%t)", v.Name, virtual, block, mapped, m.data[block], want, written)
			}
		}
	}
}
