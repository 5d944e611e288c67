// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/metadata"
)

// What two devices map is the same and differs where thin_delta says so.
func TestMappingsAsThinDelta(t *testing.T) {
	kernels := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(kernels, kernelImage(t), 0o600))
	ours := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(ours, inMemory(t, small(), 64), 0o600))
	for _, c := range []struct {
		image       string
		left, right uint32
	}{{kernels, 2, 7}, {kernels, 7, 2}, {kernels, 1, 2}, {kernels, 1, 0}, {ours, 0, 1}, {ours, 1, 0}, {ours, 2, 1}, {ours, 3, 1}} {
		r, err := metadata.Open(open(t, c.image))
		must(t, err)
		theirs := tool(t, "thin_delta", "--snap1", fmt.Sprint(c.left), "--snap2", fmt.Sprint(c.right), c.image)
		_, theirs, _ = strings.Cut(theirs, "<diff ")
		theirs, _, _ = strings.Cut(theirs, "  </diff>")
		want := fmt.Sprintf("left=\"%d\" right=\"%d\">\n%s", c.left, c.right, delta(t, r, c.left, c.right))
		if diff := cmp.Diff(theirs, want); diff != "" {
			t.Errorf("%d and %d (-thin_delta +ours):\n%s", c.left, c.right, diff)
		}
	}
}

// delta compares two devices block by block.
func delta(t *testing.T, r *metadata.Reader, left, right uint32) string {
	t.Helper()
	const none = -1
	var maps [2][1024]int64
	for i, id := range []uint32{left, right} {
		for at := range maps[i] {
			maps[i][at] = none
		}
		for run, err := range r.Mappings(id) {
			must(t, err)
			for j := range run.Length {
				maps[i][run.Origin+j] = int64(run.Data + j)
			}
		}
	}
	kind := func(at int) string {
		switch a, b := maps[0][at], maps[1][at]; {
		case a == b && a == none:
			return ""
		case a == b:
			return "same"
		case b == none:
			return "left_only"
		case a == none:
			return "right_only"
		default:
			return "different"
		}
	}
	var lines strings.Builder
	for at := 0; at < len(maps[0]); {
		n := 1
		for at+n < len(maps[0]) && kind(at+n) == kind(at) {
			n++
		}
		if k := kind(at); k != "" {
			fmt.Fprintf(&lines, "    <%s begin=\"%d\" length=\"%d\"/>\n", k, at, n)
		}
		at += n
	}
	return lines.String()
}
