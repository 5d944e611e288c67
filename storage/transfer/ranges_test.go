// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/qemuimg"
)

// What is left out of a copy onto a target that has some layers already. Layer
// 2 is the first that it has.
func TestMissing(t *testing.T) {
	const mib, own = int64(1 << 20), 2
	extent := func(start, end int64, depth int, zero bool) qemuimg.Extent {
		return qemuimg.Extent{Start: start * mib, Length: (end - start) * mib, Depth: depth, Zero: zero, Data: !zero}
	}
	for name, c := range map[string]struct {
		extents    []qemuimg.Extent
		base, size int64 // MiB
		blank      bool
		want       []span // MiB
	}{
		"all there":                  {[]qemuimg.Extent{extent(0, 100, 2, false)}, 100, 100, false, nil},
		"nothing there":              {[]qemuimg.Extent{extent(0, 100, 0, false)}, 100, 100, false, []span{{0, 100}}},
		"whole chunks":               {[]qemuimg.Extent{extent(0, 5, 3, false), extent(5, 6, 1, false), extent(6, 99, 2, false)}, 99, 99, false, []span{{4, 8}}},
		"zeros hide":                 {[]qemuimg.Extent{extent(0, 8, 0, true), extent(8, 99, 2, true)}, 99, 99, true, []span{{0, 8}}},
		"near is joined, far is not": {[]qemuimg.Extent{extent(0, 4, 0, false), extent(4, 16, 2, false), extent(16, 20, 0, false), extent(20, 60, 2, false), extent(60, 61, 1, false)}, 61, 61, false, []span{{0, 20}, {60, 61}}},
		"beyond the base, dirty":     {[]qemuimg.Extent{extent(0, 100, 2, true)}, 40, 100, false, []span{{40, 100}}},
		"beyond the base, blank":     {[]qemuimg.Extent{extent(0, 100, 2, true)}, 40, 100, true, nil},
		"data beyond the base":       {[]qemuimg.Extent{extent(0, 80, 2, true), extent(80, 100, 0, false)}, 40, 100, true, []span{{80, 100}}},
		"zeros across its end":       {[]qemuimg.Extent{extent(20, 100, 0, true)}, 40, 100, true, []span{{20, 40}}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []span
			for _, s := range missing(c.extents, own, c.base*mib, c.size*mib, c.blank) {
				got = append(got, span{s.from / mib, s.end / mib})
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(span{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Ranges cover what is to do from the mark on, none of it twice.
func TestCut(t *testing.T) {
	const size = 1 << 30
	got := cut([]span{{0, 3 * size / 2}, {4 * size, 4*size + 512}}, size/2, size)
	want := []span{{size / 2, 3 * size / 2}, {4 * size, 4*size + 512}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(span{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
