// SPDX-License-Identifier: Apache-2.0

// Package invariant says whether the parts of a thin cluster agree: the map, the
// stored mappings of volumes and the metadata of hosts. It is what
// `diskhook thin check` finds, and what tests ask after every step.
//
// The rules have numbers. Each can be told from what lies on the disks, but for
// three: 9 (only a master of the latest epoch commits the map) is kept by package
// layout at each commit, 10 (a host's metadata are opened by it alone, or by the
// master once it is fenced) by whoever opens them, and of 11 only what is mapped
// at this moment can be seen.
//
//	 1  every block has one owner
//	 2  disk 0 maps blocks to themselves, at time 0, and with the parked devices
//	    withholds from a host every block that is not the host's
//	 3  no block can be allocated by two hosts
//	 4  what an active device maps is its host's, or of a base of its volume; that
//	    is withheld, and mapped before the device's snapshot time
//	 5  no block is private to two devices, unless they share it by a snapshot
//	 6  times do not exceed the pool's, which has 24 bits
//	 7  every host knows the same number of blocks
//	 8  the mapping that counts is there: of an offline volume the stored one, of
//	    an attached one the host's; and until the host has it, what is private in
//	    the stored one is withheld there
//	11  what is mapped on a host is neither disk 0 nor parked
//	12  the bases that stored mappings refer to still have the blocks
//	13  no metadata have a number that the cluster has yet to give
//
// A device is active on a host if the map has the volume of its number there, with
// its generation, and parked otherwise. Parked devices may be remains of any age.
package invariant

import (
	"fmt"
	"maps"
	"slices"

	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
)

// Run is a run of blocks that a device in a host's metadata maps.
type Run struct {
	Virtual, Physical, Length uint64
	Time                      uint32
}

// Device is a thin device in a host's metadata.
type Device struct {
	Generation uint64 // the volume's, kept as the device's transaction
	SnapTime   uint32
	Runs       []Run
}

// Image is a host's metadata, those that count.
type Image struct {
	Blocks  uint64
	Time    uint32
	Devices map[uint32]Device
	// Active are the devices that are mapped on the host right now, if it is known.
	Active []uint32
}

// Cluster is everything that has to agree.
type Cluster struct {
	Map      layout.Map
	Mappings map[uint32]layout.Mapping // by volume, the one of generation Stored
	// Images are by host: none for one that was recovered, or whose metadata are not
	// known; what is on that host cannot be told then.
	Images map[uint32]Image
}

// Violation is a rule that is broken.
type Violation struct {
	Rule int
	Text string
}

func (v Violation) String() string { return fmt.Sprintf("rule %d: %s", v.Rule, v.Text) }

// mapped is the set of blocks that a device maps.
func (d Device) mapped() extent.Set {
	var runs []extent.Extent
	for _, r := range d.Runs {
		runs = append(runs, extent.Extent{Start: r.Physical, Length: r.Length})
	}
	return extent.Of(runs...)
}

// active says whether a device is its volume, in use on a host.
func (c Cluster) active(host, number uint32, d Device) (layout.VolumeRecord, bool) {
	for _, v := range c.Map.Volumes {
		if v.Number == number {
			return v, v.State.On() && v.Host == host && v.Generation == d.Generation
		}
	}
	return layout.VolumeRecord{}, false
}

// Withheld is the set of blocks that a host's pool cannot allocate although it may
// not even know why: those of disk 0 and of parked devices.
func (c Cluster) Withheld(host uint32) extent.Set {
	var runs []extent.Extent
	for number, d := range c.Images[host].Devices {
		if _, active := c.active(host, number, d); !active {
			runs = append(runs, d.mapped()...)
		}
	}
	return extent.Of(runs...)
}

// check collects violations.
type check struct {
	Cluster
	found []Violation
}

func (c *check) broken(rule int, format string, args ...any) {
	c.found = append(c.found, Violation{rule, fmt.Sprintf(format, args...)})
}

// Check returns every rule that is broken, none if the cluster is whole.
func Check(cluster Cluster) []Violation {
	c := &check{Cluster: cluster}
	if err := c.Map.Check(); err != nil {
		c.broken(1, "%v", err)
		return c.found // what follows would only repeat it
	}
	c.hosts()
	c.volumes()
	return c.found
}

func (c *check) hosts() {
	var allocatable, private extent.Set
	for _, h := range c.Map.Hosts {
		image, there := c.Images[h.Number]
		if !there || h.State == layout.Recovered {
			continue
		}
		all := extent.All(c.Map.Blocks)
		own := c.Map.Owned(layout.Owner{Kind: layout.OfHost, Number: h.Number})
		withheld := c.Withheld(h.Number)
		if image.Blocks != c.Map.Blocks {
			c.broken(7, "host %s: %d blocks, the cluster has %d", h.Name, image.Blocks, c.Map.Blocks)
		}
		c.disk0(h, image)
		if missing := all.Minus(own).Minus(withheld); !missing.Empty() {
			c.broken(2, "host %s: blocks %v are not its own, and nothing withholds them", h.Name, missing)
		}
		open := all.Minus(withheld)
		if both := open.Intersect(allocatable); !both.Empty() {
			c.broken(3, "host %s: blocks %v can be allocated by another host, too", h.Name, both)
		}
		allocatable = allocatable.Union(open)
		for _, number := range slices.Sorted(maps.Keys(image.Devices)) {
			private = c.device(h, image, number, own, withheld, private)
		}
		for _, number := range image.Active {
			if _, active := c.active(h.Number, number, image.Devices[number]); number == 0 || !active {
				c.broken(11, "host %s: device %d is mapped, and parked or disk 0", h.Name, number)
			}
		}
	}
}

func (c *check) disk0(h layout.HostRecord, image Image) {
	for _, r := range image.Devices[0].Runs {
		if r.Virtual != r.Physical || r.Time != 0 {
			c.broken(2, "host %s: disk 0 maps block %d to %d at time %d", h.Name, r.Virtual, r.Physical, r.Time)
			return
		}
	}
}

// device checks one device and returns what is private so far.
func (c *check) device(h layout.HostRecord, image Image, number uint32, own, withheld, private extent.Set) extent.Set {
	d := image.Devices[number]
	if number != 0 && number < layout.FirstLocal && number >= c.Map.NextVolume {
		c.broken(13, "host %s: device %d, the next volume is %d", h.Name, number, c.Map.NextVolume)
	}
	if d.SnapTime > image.Time || image.Time >= 1<<24 {
		c.broken(6, "host %s: device %d has snapshot time %d, the pool %d", h.Name, number, d.SnapTime, image.Time)
	}
	v, active := c.active(h.Number, number, d)
	var bases, mine extent.Set
	for _, b := range v.Bases {
		bases = bases.Union(c.Map.Owned(layout.Owner{Kind: layout.OfBase, Number: b}))
	}
	for _, r := range d.Runs {
		if r.Time > image.Time {
			c.broken(6, "host %s: device %d maps block %d at time %d, the pool has %d", h.Name, number, r.Physical, r.Time, image.Time)
		}
		if !active {
			continue
		}
		run := extent.Of(extent.Extent{Start: r.Physical, Length: r.Length})
		shared := run.Intersect(bases)
		if !shared.Empty() && (r.Time >= d.SnapTime || !withheld.Covers(shared)) {
			c.broken(4, "host %s: volume %s could write to or free blocks %v, which are shared", h.Name, v.Name, shared)
		}
		alone := run.Minus(shared)
		if r.Time >= d.SnapTime && withheld.Overlaps(alone) {
			c.broken(5, "host %s: volume %s and a parked device both have blocks %v", h.Name, v.Name, alone.Intersect(withheld))
		}
		mine = mine.Union(alone)
	}
	if !own.Covers(mine) {
		c.broken(4, "host %s: volume %s maps blocks %v, which are not the host's", h.Name, v.Name, mine.Minus(own))
	}
	if both := mine.Intersect(private); !both.Empty() {
		c.broken(5, "host %s: volume %s and another one both have blocks %v", h.Name, v.Name, both)
	}
	return private.Union(mine)
}

func (c *check) volumes() {
	for _, v := range c.Map.Volumes {
		m, stored := c.Mappings[v.Number]
		image, known := c.Images[v.Host]
		d, there := image.Devices[v.Number]
		inHost := v.State.On() && there && d.Generation == v.Generation
		switch {
		case !stored:
			c.broken(8, "volume %s: no mapping of generation %d is stored", v.Name, v.Stored())
			continue
		case v.State == layout.Attached && known && !inHost:
			c.broken(8, "volume %s: host %d does not have it with generation %d", v.Name, v.Host, v.Generation)
		}
		for _, r := range m.Runs {
			base := extent.Of(extent.Extent{Start: r.Physical, Length: r.Length})
			if r.Base != 0 && (!slices.Contains(v.Bases, r.Base) || !c.Map.Owned(layout.Owner{Kind: layout.OfBase, Number: r.Base}).Covers(base)) {
				c.broken(12, "volume %s: base %d does not have blocks %v any more", v.Name, r.Base, base)
			}
		}
		if v.State.On() && !known {
			continue
		}
		owner := layout.Owner{Kind: layout.OfVolume, Number: v.Number}
		if v.State.On() {
			owner = layout.Owner{Kind: layout.OfHost, Number: v.Host}
		}
		if rest := m.Private().Minus(c.Map.Owned(owner)); !inHost && !rest.Empty() {
			c.broken(8, "volume %s: its stored mapping has blocks %v, which are another's", v.Name, rest)
		}
		if v.State == layout.Attaching && !inHost && !c.Withheld(v.Host).Covers(m.Private()) {
			c.broken(8, "volume %s: host %d could allocate blocks of it before it has the volume", v.Name, v.Host)
		}
	}
}
