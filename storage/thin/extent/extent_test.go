// SPDX-License-Identifier: Apache-2.0

package extent_test

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/thin/extent"
)

const universe = 40

// members is the set as its definition has it: block by block.
func members(s extent.Set) (m [universe]bool) {
	for b := range uint64(universe) {
		for _, e := range s {
			m[b] = m[b] || e.Start <= b && b < e.End()
		}
	}
	return m
}

func draw(t *rapid.T, label string) extent.Set {
	runs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) extent.Extent {
		from := rapid.Uint64Range(0, universe-1).Draw(t, "from")
		return extent.Extent{Start: from, Length: rapid.Uint64Range(0, min(9, universe-from)).Draw(t, "n")}
	}), 0, 8).Draw(t, label)
	set := extent.Of(runs...)
	want := [universe]bool{}
	for _, r := range runs {
		for b := r.Start; b < r.End(); b++ {
			want[b] = true
		}
	}
	if got := members(set); got != want {
		t.Fatalf("Of(%v) = %v", runs, set)
	}
	return set
}

func canonical(t *rapid.T, s extent.Set) {
	for i, e := range s {
		if e.Length == 0 || i > 0 && e.Start <= s[i-1].End() {
			t.Fatalf("%v is not canonical", s)
		}
	}
}

func TestArithmetic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw(t, "a"), draw(t, "b")
		ma, mb := members(a), members(b)
		for name, op := range map[string]struct {
			got  extent.Set
			want func(a, b bool) bool
		}{
			"union":     {a.Union(b), func(a, b bool) bool { return a || b }},
			"intersect": {a.Intersect(b), func(a, b bool) bool { return a && b }},
			"minus":     {a.Minus(b), func(a, b bool) bool { return a && !b }},
		} {
			canonical(t, op.got)
			var count uint64
			got := members(op.got)
			for i := range universe {
				if got[i] != op.want(ma[i], mb[i]) {
					t.Fatalf("%s of %v and %v is %v", name, a, b, op.got)
				}
				if got[i] {
					count++
				}
				if op.got.Contains(uint64(i)) != got[i] {
					t.Fatalf("%v contains %d: %t", op.got, i, !got[i])
				}
			}
			if op.got.Blocks() != count || op.got.Empty() != (count == 0) {
				t.Fatalf("%v has %d blocks", op.got, count)
			}
		}
		if a.Overlaps(b) == a.Intersect(b).Empty() || a.Covers(b) != (b.Minus(a).Blocks() == 0) {
			t.Fatalf("%v and %v", a, b)
		}
		n := rapid.Uint64Range(0, universe).Draw(t, "n")
		first := a.First(n)
		canonical(t, first)
		if !a.Covers(first) || first.Blocks() != min(n, a.Blocks()) {
			t.Fatalf("First(%d) of %v is %v", n, a, first)
		}
	})
}

func TestFirst(t *testing.T) {
	set := extent.Of(extent.Extent{Start: 2, Length: 2}, extent.Extent{Start: 10, Length: 5})
	for n, want := range map[uint64]extent.Set{
		2: extent.Of(extent.Extent{Start: 2, Length: 2}),
		4: extent.Of(extent.Extent{Start: 10, Length: 4}),
		6: extent.Of(extent.Extent{Start: 2, Length: 2}, extent.Extent{Start: 10, Length: 4}),
		0: nil,
	} {
		if diff := cmp.Diff(want.String(), set.First(n).String()); diff != "" {
			t.Errorf("%d: %s", n, diff)
		}
	}
}

func TestFits(t *testing.T) {
	for _, c := range []struct {
		e    extent.Extent
		fits bool
	}{
		{extent.Extent{Start: 0, Length: 10}, true}, {extent.Extent{Start: 9, Length: 1}, true}, {extent.Extent{Start: 9, Length: 2}, false},
		{extent.Extent{Start: 3, Length: 0}, false}, {extent.Extent{Start: 5, Length: math.MaxUint64 - 2}, false},
	} {
		if c.e.Fits(10) != c.fits {
			t.Errorf("%v: %t", c.e, !c.fits)
		}
	}
}

func TestString(t *testing.T) {
	var long extent.Set
	for i := range uint64(10) {
		long = long.Union(extent.Of(extent.Extent{Start: 3 * i, Length: 1}))
	}
	for want, set := range map[string]extent.Set{
		"none": nil, "0+7": extent.All(7), "0+1 3+1 6+1 9+1 12+1 15+1 18+1 21+1 and 2 more runs": long,
	} {
		if got := set.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
