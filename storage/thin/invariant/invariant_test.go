// SPDX-License-Identifier: Apache-2.0

package invariant_test

import (
	"slices"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
)

func run(start, length uint64) extent.Extent { return extent.Extent{Start: start, Length: length} }

// whole is a cluster of two hosts: volume 1 is attached at the first with blocks
// of its own and of base 1, volume 2 is offline, volume 3 on its way to the second.
func whole() invariant.Cluster {
	m := layout.NewMap(layout.Geometry{BlockSize: 64 << 10, Blocks: 100})
	m.NextHost, m.NextVolume, m.NextBase = 3, 4, 2
	m.Hosts = []layout.HostRecord{
		{Number: 1, UUID: uuid.UUID{1}, Name: "one", State: layout.Member}, {Number: 2, UUID: uuid.UUID{2}, Name: "two", State: layout.Member},
	}
	m.Volumes = []layout.VolumeRecord{
		{Number: 1, UUID: uuid.UUID{1}, Name: "a", Size: 1 << 20, State: layout.Attached, Host: 1, Generation: 4, Bases: []uint32{1}},
		{Number: 2, UUID: uuid.UUID{2}, Name: "b", Size: 1 << 20, State: layout.Offline, Generation: 3, Bases: []uint32{1}},
		{Number: 3, UUID: uuid.UUID{3}, Name: "c", Size: 1 << 20, State: layout.Attaching, Host: 2, Generation: 2},
	}
	give := func(kind layout.OwnerKind, number uint32, start, length uint64) {
		m.Give(extent.Of(run(start, length)), layout.Owner{Kind: kind, Number: number})
	}
	give(layout.OfHost, 1, 10, 10)
	give(layout.OfHost, 2, 20, 10)
	give(layout.OfVolume, 2, 40, 5)
	give(layout.OfBase, 1, 50, 5)
	mapping := func(number uint32, runs ...layout.MappingRun) layout.Mapping {
		return layout.Mapping{Number: number, BlockSize: 64 << 10, Size: 1 << 20, Runs: runs}
	}
	disk0 := func(runs ...extent.Extent) invariant.Device {
		var d invariant.Device
		for _, r := range runs {
			d.Runs = append(d.Runs, invariant.Run{Virtual: r.Start, Physical: r.Start, Length: r.Length})
		}
		return d
	}
	return invariant.Cluster{
		Map: m,
		Mappings: map[uint32]layout.Mapping{
			1: mapping(1, layout.MappingRun{Virtual: 0, Physical: 50, Length: 2, Base: 1}),
			2: mapping(2, layout.MappingRun{Virtual: 0, Physical: 50, Length: 5, Base: 1}, layout.MappingRun{Virtual: 5, Physical: 40, Length: 5}),
			3: mapping(3, layout.MappingRun{Virtual: 0, Physical: 25, Length: 2}),
		},
		Images: map[uint32]invariant.Image{
			1: {Blocks: 100, Time: 1, Active: []uint32{1}, Devices: map[uint32]invariant.Device{
				0:                 disk0(run(0, 10), run(20, 80)),
				1:                 {Generation: 4, SnapTime: 1, Runs: []invariant.Run{{Virtual: 0, Physical: 50, Length: 2}, {Virtual: 2, Physical: 10, Length: 3, Time: 1}}},
				layout.FirstLocal: {Runs: []invariant.Run{{Virtual: 0, Physical: 19, Length: 1, Time: 1}}},
			}},
			2: {Blocks: 100, Time: 1, Devices: map[uint32]invariant.Device{0: disk0(run(0, 20), run(25, 2), run(30, 70))}},
		},
	}
}

// device changes a device of a host.
func device(c *invariant.Cluster, host, number uint32, change func(d *invariant.Device)) {
	d := c.Images[host].Devices[number]
	d.Runs = slices.Clone(d.Runs)
	change(&d)
	c.Images[host].Devices[number] = d
}

func TestCheck(t *testing.T) {
	if found := invariant.Check(whole()); found != nil {
		t.Fatal(found)
	}
	for name, c := range map[string]struct {
		rules []int
		spoil func(c *invariant.Cluster)
	}{
		"a gap in the map":               {[]int{1}, func(c *invariant.Cluster) { c.Map.Owners = c.Map.Owners[1:] }},
		"disk 0 lacks a foreign block":   {[]int{2}, func(c *invariant.Cluster) { device(c, 2, 0, func(d *invariant.Device) { d.Runs[2].Length-- }) }},
		"disk 0 is no identity":          {[]int{2}, func(c *invariant.Cluster) { device(c, 2, 0, func(d *invariant.Device) { d.Runs[2].Virtual++ }) }},
		"disk 0 is younger":              {[]int{2}, func(c *invariant.Cluster) { device(c, 2, 0, func(d *invariant.Device) { d.Runs[2].Time = 1 }) }},
		"two hosts allocate one block":   {[]int{2, 3}, func(c *invariant.Cluster) { device(c, 2, 0, func(d *invariant.Device) { d.Runs[0].Length = 15 }) }},
		"a block that is not the host's": {[]int{4, 5}, func(c *invariant.Cluster) { device(c, 1, 1, func(d *invariant.Device) { d.Runs[1].Physical = 60 }) }},
		"a shared block is written to":   {[]int{4}, func(c *invariant.Cluster) { device(c, 1, 1, func(d *invariant.Device) { d.Runs[0].Time = 1 }) }},
		"a base of others": {[]int{4, 5, 12}, func(c *invariant.Cluster) {
			c.Map.Volumes[0].Bases = nil
			device(c, 1, 1, func(d *invariant.Device) { d.Runs[0].Time = 1 })
		}},
		"private and parked": {[]int{5}, func(c *invariant.Cluster) {
			device(c, 1, layout.FirstLocal, func(d *invariant.Device) { d.Runs[0].Physical = 10 })
		}},
		"snapshot of the future":   {[]int{6}, func(c *invariant.Cluster) { device(c, 1, 1, func(d *invariant.Device) { d.SnapTime = 2 }) }},
		"mapping of the future":    {[]int{6}, func(c *invariant.Cluster) { device(c, 1, 1, func(d *invariant.Device) { d.Runs[1].Time = 2 }) }},
		"another number of blocks": {[]int{7}, func(c *invariant.Cluster) { i := c.Images[2]; i.Blocks = 90; c.Images[2] = i }},
		"no stored mapping":        {[]int{8}, func(c *invariant.Cluster) { delete(c.Mappings, 2) }},
		"attached, and not there": {[]int{2, 8, 11}, func(c *invariant.Cluster) {
			device(c, 1, 1, func(d *invariant.Device) { d.Generation = 3 })
			device(c, 1, 0, func(d *invariant.Device) { d.Runs[0].Length = 9 })
		}},
		"a stored mapping of others": {[]int{8}, func(c *invariant.Cluster) { c.Map.Give(extent.Of(run(41, 1)), layout.Owner{Kind: layout.Free}) }},
		"free before it arrives":     {[]int{8}, func(c *invariant.Cluster) { device(c, 2, 0, func(d *invariant.Device) { d.Runs[1].Length = 1 }) }},
		"disk 0 is mapped":           {[]int{11}, func(c *invariant.Cluster) { i := c.Images[1]; i.Active = []uint32{0}; c.Images[1] = i }},
		"a balloon is mapped":        {[]int{11}, func(c *invariant.Cluster) { i := c.Images[1]; i.Active = []uint32{layout.FirstLocal}; c.Images[1] = i }},
		"a base that lost a block":   {[]int{12}, func(c *invariant.Cluster) { c.Map.Give(extent.Of(run(53, 1)), layout.Owner{Kind: layout.Free}) }},
		"a number to come":           {[]int{13}, func(c *invariant.Cluster) { c.Images[2].Devices[4] = invariant.Device{} }},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := whole()
			c.spoil(&cluster)
			var rules []int
			for _, v := range invariant.Check(cluster) {
				rules = append(rules, v.Rule)
			}
			slices.Sort(rules)
			if rules = slices.Compact(rules); !slices.Equal(rules, c.rules) {
				t.Errorf("rules %v, want %v: %v", rules, c.rules, invariant.Check(cluster))
			}
		})
	}
}
