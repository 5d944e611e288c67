// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

// ruled is a map with two hosts, an offline and an attached volume and a base.
func ruled() layout.Map {
	m := mapOf(1)
	m.NextHost, m.NextVolume, m.NextBase = 3, 3, 2
	m.Hosts = append(m.Hosts, layout.HostRecord{Number: 2, UUID: other, Name: "two", State: layout.Fenced, Evidence: "typed"})
	m.Volumes = []layout.VolumeRecord{
		{Number: 1, UUID: object, Name: "a", Size: 1 << 20, State: layout.Offline, Generation: 1, Bases: []uint32{1}},
		{Number: 2, UUID: other, Name: "b", Size: 1 << 20, State: layout.Attached, Host: 1, Generation: 2},
	}
	m.Give(extent.Of(extent.Extent{Start: 500, Length: 10}), layout.Owner{Kind: layout.OfBase, Number: 1})
	m.Give(extent.Of(extent.Extent{Start: 600, Length: 10}), layout.Owner{Kind: layout.OfVolume, Number: 1})
	return m
}

func TestMapRules(t *testing.T) {
	if err := ruled().Check(); err != nil {
		t.Fatal(err)
	}
	at := func(start uint64, o layout.Owner) func(m *layout.Map) {
		return func(m *layout.Map) { m.Give(extent.Of(extent.Extent{Start: start, Length: 3}), o) }
	}
	for name, change := range map[string]func(m *layout.Map){
		"geometry":                          func(m *layout.Map) { m.BlockSize++ },
		"more blocks than owners":           func(m *layout.Map) { m.Blocks++ },
		"fewer":                             func(m *layout.Map) { m.Blocks-- },
		"a run with two owners":             func(m *layout.Map) { m.Owners[1].Length++ },
		"an empty run":                      func(m *layout.Map) { m.Owners[1].Length = 0 },
		"no label":                          at(0, layout.Owner{Kind: layout.Free}),
		"a second label":                    at(700, layout.Owner{Kind: layout.OfLabel}),
		"owner of no kind":                  at(700, layout.Owner{}),
		"an unknown host":                   at(700, layout.Owner{Kind: layout.OfHost, Number: 7}),
		"an unknown volume":                 at(700, layout.Owner{Kind: layout.OfVolume, Number: 7}),
		"a volume that is attached":         at(700, layout.Owner{Kind: layout.OfVolume, Number: 2}),
		"a base without volumes":            at(700, layout.Owner{Kind: layout.OfBase, Number: 7}),
		"free with a number":                at(700, layout.Owner{Kind: layout.Free, Number: 1}),
		"a recovered host owns":             func(m *layout.Map) { at(700, layout.Owner{Kind: layout.OfHost, Number: 2})(m); m.Hosts[1].State = 3 },
		"host number of the future":         func(m *layout.Map) { m.NextHost = 2 },
		"host numbers descend":              func(m *layout.Map) { m.Hosts[0].Number = 2 },
		"two hosts of one UUID":             func(m *layout.Map) { m.Hosts[1].UUID = object },
		"two hosts of one name":             func(m *layout.Map) { m.Hosts[1].Name = "one" },
		"a host without UUID":               func(m *layout.Map) { m.Hosts[1].UUID = uuid.Nil },
		"a host's name":                     func(m *layout.Map) { m.Hosts[1].Name = "-rf" },
		"a host's state":                    func(m *layout.Map) { m.Hosts[0].State = 9 },
		"fenced without evidence":           func(m *layout.Map) { m.Hosts[1].Evidence = "" },
		"a member with evidence":            func(m *layout.Map) { m.Hosts[0].Evidence = "x" },
		"a novel for evidence":              func(m *layout.Map) { m.Hosts[1].Evidence = strings.Repeat("x", 300) },
		"volume number of 24 bits":          func(m *layout.Map) { m.Volumes[1].Number = 1 << 24 },
		"the next of 24 bits":               func(m *layout.Map) { m.NextVolume = 1 << 24 },
		"volume number of the future":       func(m *layout.Map) { m.NextVolume = 2 },
		"two volumes of one name":           func(m *layout.Map) { m.Volumes[1].Name = "a" },
		"a volume's name":                   func(m *layout.Map) { m.Volumes[1].Name = "a b" },
		"a volume's size":                   func(m *layout.Map) { m.Volumes[1].Size = 100 },
		"a volume's state":                  func(m *layout.Map) { m.Volumes[1].State = 0 },
		"a volume of no generation":         func(m *layout.Map) { m.Volumes[1].Generation = 0 },
		"attached without a stored mapping": func(m *layout.Map) { m.Volumes[1].Generation = 1 },
		"attached nowhere":                  func(m *layout.Map) { m.Volumes[1].Host = 0 },
		"attached to an unknown host":       func(m *layout.Map) { m.Volumes[1].Host = 9 },
		"offline at a host":                 func(m *layout.Map) { m.Volumes[0].Host = 1 },
		"a base of the future":              func(m *layout.Map) { m.Volumes[1].Bases = []uint32{2} },
		"a base twice":                      func(m *layout.Map) { m.Volumes[1].Bases = []uint32{1, 1} },
		"an attached volume's private map":  func(m *layout.Map) { v := &m.Volumes[0]; v.State, v.Host, v.Generation = layout.Attaching, 1, 2 },
	} {
		t.Run(name, func(t *testing.T) {
			m := ruled()
			change(&m)
			disk := layouttest.New("hosts", 64<<10)
			_, err := layout.CreateMap(disk, cluster, 1, m)
			if !errors.Is(err, layout.ErrInvalid) || failure.HintOf(err) == "" || disk.Writes != 0 {
				t.Errorf("%v after %d writes", err, disk.Writes)
			}
		})
	}
}

// Give is what its sentence says, block by block, and keeps the rules.
func TestGive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := ruled()
		owners := []layout.Owner{{Kind: layout.Free}, {Kind: layout.OfHost, Number: 1}, {Kind: layout.OfVolume, Number: 1}, {Kind: layout.OfBase, Number: 1}}
		for range rapid.IntRange(1, 6).Draw(t, "times") {
			var runs []extent.Extent
			for range rapid.IntRange(0, 5).Draw(t, "runs") {
				runs = append(runs, extent.Extent{Start: rapid.Uint64Range(1, 990).Draw(t, "start"), Length: rapid.Uint64Range(0, 10).Draw(t, "length")})
			}
			to, blocks := rapid.SampledFrom(owners).Draw(t, "to"), extent.Of(runs...)
			before := map[layout.Owner]extent.Set{}
			for _, o := range owners {
				before[o] = m.Owned(o)
			}
			m.Give(blocks, to)
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			for _, o := range owners {
				want := before[o].Minus(blocks)
				if o == to {
					want = before[o].Union(blocks)
				}
				if got := m.Owned(o); got.String() != want.String() {
					t.Fatalf("%v owns %v, want %v", o, got, want)
				}
			}
		}
	})
}

func TestGeometryFor(t *testing.T) {
	for _, c := range []struct{ bytes, block, blocks, size uint64 }{
		{1 << 40, 0, 16 << 20, 64 << 10}, {4 << 40, 0, 16 << 20, 256 << 10}, {16<<40 + 5, 0, 16 << 20, 1 << 20}, {1 << 30, 1 << 20, 1024, 1 << 20},
		{1 << 30, 192 << 10, 5461, 192 << 10},
	} {
		if g, err := layout.GeometryFor(c.bytes, c.block); err != nil || g.Blocks != c.blocks || g.BlockSize != c.size {
			t.Errorf("%+v: %+v, %v", c, g, err)
		}
	}
	for _, c := range [][2]uint64{{1 << 16, 0}, {1 << 40, 100 << 10}, {1 << 40, 2 << 30}, {1 << 40, 32 << 10}} {
		if g, err := layout.GeometryFor(c[0], c[1]); err == nil {
			t.Errorf("%v: %+v", c, g)
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range []layout.Suffix{layout.Host, layout.Thin, layout.Raw, layout.VHD} {
		if id, got, ok := layout.ParseName(s.Name(object)); id != object || got != s || !ok {
			t.Errorf("%s: %v %v %v", s, id, got, ok)
		}
	}
	for _, name := range []string{"hosts", "global-thin-pool", object.String(), object.String() + ".thin.old", object.String() + ".", strings.ToUpper(object.String()) + ".thin", "x.thin", "{" + object.String() + "}.thin"} {
		if _, _, ok := layout.ParseName(name); ok {
			t.Errorf("%s is ours", name)
		}
	}
}

// A data volume that is larger or smaller than the cluster knows.
func TestLabelSize(t *testing.T) {
	for name, c := range map[string]struct {
		size   int64
		reason error
		hint   string
	}{
		"as known":          {100 * 64 << 10, nil, ""},
		"less than a block": {100*64<<10 + 4096, nil, ""},
		"a block more":      {101 * 64 << 10, layout.ErrGrown, "diskhook thin grow"},
		"smaller":           {100*64<<10 - 4096, layout.ErrShrunk, "lvextend"},
	} {
		t.Run(name, func(t *testing.T) {
			disk := layouttest.New("/dev/vg/global-thin-pool", c.size)
			g := layout.Geometry{BlockSize: 64 << 10, Blocks: 100}
			if err := layout.CreateLabel(disk, cluster, 1, g); err != nil {
				t.Fatal(err)
			}
			got, err := layout.ReadLabel(disk, cluster)
			if got != g || !errors.Is(err, c.reason) || !strings.Contains(failure.HintOf(err), c.hint) {
				t.Errorf("%+v, %v, %q", got, err, failure.HintOf(err))
			}
			if err := layout.GrowLabel(disk, cluster, 1, layout.Geometry{BlockSize: 64 << 10, Blocks: 99}); !errors.Is(err, layout.ErrInvalid) {
				t.Errorf("shrinking: %v", err)
			}
		})
	}
}
