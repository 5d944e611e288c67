// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"context"
	"math/bits"

	"diskhook/storage/thin/extent"
)

// DataBlocks is the set of data blocks that the devices with these ids map, all
// devices if none is named. What two sets have in common is shared; sharing by
// way of a third device shows in the set of that one only.
func (r *Reader) DataBlocks(ctx context.Context, ids ...uint32) (extent.Set, error) {
	used := newCounts(r.sb.DataBlocks)
	if err := r.Stream(ctx, marker{&used}, ids...); err != nil {
		return nil, err
	}
	return used.set(), nil
}

// marker is a Sink that remembers data blocks, and nothing of how often they
// are mapped.
type marker struct{ used *counts }

func (marker) Device(Device) error { return nil }
func (marker) Finish() error       { return nil }

func (m marker) Map(run Run) error {
	m.used.mark(run.Data, run.Length)
	return nil
}

// mark counts each of n blocks as referred to at least once.
func (c *counts) mark(first, n uint64) {
	for n > 0 {
		page, at := first/entriesPerBitmap, first%entriesPerBitmap
		here := min(n, entriesPerBitmap-at)
		if c.pages[page] == nil {
			c.pages[page] = new(countPage)
		}
		c.pages[page].mark(int(at), int(here))
		first, n = first+here, n-here
	}
}

func (p *countPage) mark(at, n int) {
	for n > 0 {
		here := min(n, 32-at%32)
		p.small[at/32] |= allOnes >> (64 - 2*here) << (at % 32 * 2)
		at, n = at+here, n-here
	}
}

// set is the blocks that are marked.
func (c *counts) set() extent.Set {
	var set extent.Set
	for i, p := range c.pages {
		if p == nil {
			continue
		}
		for j, w := range p.small {
			first := uint64(i)*entriesPerBitmap + uint64(32*j)
			for w != 0 {
				skip := bits.TrailingZeros64(w) / 2
				w >>= 2 * skip
				n := bits.TrailingZeros64(^(w | w<<1)) / 2
				set = join(set, extent.Extent{Start: first + uint64(skip), Length: uint64(n)})
				first += uint64(skip + n)
				w >>= 2 * n
			}
		}
	}
	return set
}

// join adds a run that begins at the end of the last or behind it.
func join(set extent.Set, e extent.Extent) extent.Set {
	if n := len(set); n > 0 && set[n-1].End() == e.Start {
		set[n-1].Length += e.Length
		return set
	}
	return append(set, e)
}
