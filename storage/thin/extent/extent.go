// SPDX-License-Identifier: Apache-2.0

// Package extent does arithmetic on sets of data blocks of a thin cluster:
// which blocks a host owns, which a volume maps, what two of them share.
//
// A set is kept as runs, since what the master hands out and what a kernel
// allocates from it is contiguous for the most part; a set of every block of a
// large LUN is one run. Nothing here does any I/O or fails: a set is canonical
// by construction. What comes from a disk has to pass Fits first.
package extent

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Extent is a run of Length data blocks from block Start on.
type Extent struct{ Start, Length uint64 }

// End is the block after the last.
func (e Extent) End() uint64 { return e.Start + e.Length }

// Fits says whether the run is not empty and ends within the first blocks.
func (e Extent) Fits(blocks uint64) bool {
	end, over := bits.Add64(e.Start, e.Length, 0)
	return over == 0 && e.Length > 0 && end <= blocks
}

// Set is a set of blocks: runs in ascending order that neither overlap nor
// touch. The zero value is empty. No operation changes its operands.
type Set []Extent

// Of makes a set of runs, which may overlap and be in any order. Empty runs
// count for nothing.
func Of(runs ...Extent) Set {
	runs = slices.Clone(runs)
	slices.SortFunc(runs, func(a, b Extent) int { return cmp.Compare(a.Start, b.Start) })
	var set Set
	for _, e := range runs {
		set = set.push(e)
	}
	return set
}

// push adds a run that starts at or after the start of the last one.
func (s Set) push(e Extent) Set {
	if e.Length == 0 {
		return s
	}
	if last := len(s) - 1; last >= 0 && e.Start <= s[last].End() {
		s[last].Length = max(s[last].End(), e.End()) - s[last].Start
		return s
	}
	return append(s, e)
}

// All is the set of the first blocks.
func All(blocks uint64) Set { return Of(Extent{0, blocks}) }

// Blocks counts the blocks of the set.
func (s Set) Blocks() uint64 {
	var n uint64
	for _, e := range s {
		n += e.Length
	}
	return n
}

// Empty says whether the set has no block.
func (s Set) Empty() bool { return len(s) == 0 }

// Contains says whether a block is in the set.
func (s Set) Contains(block uint64) bool {
	i, found := slices.BinarySearchFunc(s, block, func(e Extent, b uint64) int { return cmp.Compare(e.Start, b) })
	return found || i > 0 && block < s[i-1].End()
}

// Union is every block that is in s or in t.
func (s Set) Union(t Set) Set {
	var out Set
	for len(s) > 0 || len(t) > 0 {
		if len(t) == 0 || len(s) > 0 && s[0].Start <= t[0].Start {
			out, s = out.push(s[0]), s[1:]
		} else {
			out, t = out.push(t[0]), t[1:]
		}
	}
	return out
}

// Intersect is every block that is in both.
func (s Set) Intersect(t Set) Set {
	var out Set
	for len(s) > 0 && len(t) > 0 {
		from, to := max(s[0].Start, t[0].Start), min(s[0].End(), t[0].End())
		if from < to {
			out = out.push(Extent{from, to - from})
		}
		if s[0].End() < t[0].End() {
			s = s[1:]
		} else {
			t = t[1:]
		}
	}
	return out
}

// Minus is every block of s that is not in t.
func (s Set) Minus(t Set) Set {
	var out Set
	for _, e := range s {
		for len(t) > 0 && t[0].End() <= e.Start {
			t = t[1:]
		}
		from := e.Start
		for _, hole := range t {
			if hole.Start >= e.End() {
				break
			}
			if hole.Start > from {
				out = out.push(Extent{from, hole.Start - from})
			}
			from = max(from, hole.End())
		}
		if from < e.End() {
			out = out.push(Extent{from, e.End() - from})
		}
	}
	return out
}

// Overlaps says whether a block is in both.
func (s Set) Overlaps(t Set) bool { return !s.Intersect(t).Empty() }

// Covers says whether every block of t is in s.
func (s Set) Covers(t Set) bool { return t.Minus(s).Empty() }

// First is a set of n blocks of s, or of all if it has fewer: the lowest run
// that has room for n, else the lowest blocks. Contiguous grants lead to
// contiguous mappings, as the kernel allocates in ascending order.
func (s Set) First(n uint64) Set {
	for _, e := range s {
		if e.Length >= n {
			return Of(Extent{e.Start, n})
		}
	}
	var out Set
	for _, e := range s {
		part := min(n, e.Length)
		out, n = out.push(Extent{e.Start, part}), n-part
	}
	return out
}

// String lists the runs as START+LENGTH, of a long set the first ones.
func (s Set) String() string {
	const most = 8
	var text []string
	for _, e := range s[:min(len(s), most)] {
		text = append(text, fmt.Sprintf("%d+%d", e.Start, e.Length))
	}
	if rest := len(s) - most; rest > 0 {
		text = append(text, fmt.Sprintf("and %d more runs", rest))
	}
	if len(text) == 0 {
		return "none"
	}
	return strings.Join(text, " ")
}
