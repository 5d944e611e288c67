// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"maps"
	"slices"
)

// Range is a piece of the disk, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (r Range) end() int64 { return r.Offset + r.Length }

// maxRanges bounds a list of ranges. A disk may differ in every other block.
const maxRanges = 4096

// ranges is a list that is built in ascending order. Neighbours become one;
// beyond maxRanges so do those with a gap between them, the more the longer it
// gets. So it always covers what was added, and says more than that only then.
type ranges struct {
	list []Range
	gap  int64
}

// add appends [off, off+n).
func (r *ranges) add(off, n int64) {
	if last := len(r.list) - 1; last >= 0 && off-r.list[last].end() <= r.gap {
		r.list[last].Length = max(r.list[last].end(), off+n) - r.list[last].Offset
		return
	}
	r.list = append(r.list, Range{off, n})
	for len(r.list) > maxRanges {
		r.gap = max(2*r.gap, blockBytes)
		old := r.list
		r.list = nil
		for _, x := range old {
			r.add(x.Offset, x.Length)
		}
	}
}

// union is the ranges of all lists, in order. It is never nil.
func union(lists map[string][]Range) []Range {
	all := slices.Concat(slices.Collect(maps.Values(lists))...)
	slices.SortFunc(all, func(a, b Range) int {
		if a.Offset < b.Offset {
			return -1
		}
		return 1
	})
	merged := []Range{}
	for _, r := range all {
		if last := len(merged) - 1; last >= 0 && r.Offset <= merged[last].end() {
			merged[last].Length = max(merged[last].end(), r.end()) - merged[last].Offset
			continue
		}
		merged = append(merged, r)
	}
	return merged
}
