// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"cmp"
	"slices"
)

// sharing looks whether the kernel copies what is shared before it writes. A
// data block is shared if two leaves map it, or if the leaf that maps it, or a
// node above, belongs to two trees.
//
// Each node is entered once, from the device with the oldest snap time: what is
// older than that is old enough for the others that share the node. Of two
// paths to one node each has a node that is referred to twice, so it does not
// matter which is taken.
func (c *checker) sharing(devices []checkedDevice) error {
	entered := newCounts(c.r.src.blocks)
	devices = slices.Clone(devices)
	slices.SortStableFunc(devices, func(a, b checkedDevice) int { return cmp.Compare(a.SnapTime, b.SnapTime) })
	for _, d := range devices {
		if !d.mapped || slices.Contains(c.Reserved, d.ID) {
			continue
		}
		shared := []bool{false} // for each level above: it, or what is above it, is
		above := func() bool { return shared[len(shared)-1] }
		w := walker{
			src: &c.r.src, size: mappingSize,
			skip: func(block uint64, n node) (below, bool, error) {
				if entered.get(block) > 0 {
					return below{entries: 1}, true, nil
				}
				entered.add(block, 1)
				if n.internal() {
					shared = append(shared, above() || c.nodes.get(block) > 1)
				}
				return below{}, false, nil
			},
			left: func(uint64, below) { shared = shared[:len(shared)-1] },
			leaf: func(block uint64, n node) error { return c.unguarded(d.Device, above() || c.nodes.get(block) > 1, n) },
		}
		if _, err := w.walk(d.root); err != nil {
			return c.forgive(err)
		}
	}
	return nil
}

// unguarded reports what a leaf maps and shares, and the kernel would write in
// place.
func (c *checker) unguarded(d Device, leafShared bool, n node) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	look := func(run Run) error {
		if run.Time < d.SnapTime {
			return nil
		}
		for i := range run.Length {
			if leafShared || c.data.get(run.Data+i) > 1 {
				c.report(Rule, "thin device %d: virtual block %d: mapped at %d, snapshot at %d: a write would go into data block %d, which is shared",
					d.ID, run.Origin+i, run.Time, d.SnapTime, run.Data+i)
			}
		}
		return nil
	}
	last, _ := n.runs(Run{}, look)
	if last.Length > 0 {
		return look(last)
	}
	return nil
}
