// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/metadata"
)

// What a device maps, and what it maps alone, is what thin_ls says.
func TestDataBlocksAsThinLS(t *testing.T) {
	m := kernelImage(t)
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, m, 0o600))
	r, err := metadata.Open(m)
	must(t, err)
	ids := []uint32{0, 1, 2, 7, 8, 9}
	var lines []string
	for i, id := range ids {
		mapped, err := r.DataBlocks(t.Context(), id)
		must(t, err)
		others, err := r.DataBlocks(t.Context(), slices.Delete(slices.Clone(ids), i, i+1)...)
		must(t, err)
		lines = append(lines, fmt.Sprint(id, mapped.Blocks(), mapped.Minus(others).Blocks(), mapped.Intersect(others).Blocks()))
	}
	var theirs []string
	for line := range strings.Lines(tool(t, "thin_ls", "--no-headers", "-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS", path)) {
		theirs = append(theirs, strings.Join(strings.Fields(line), " "))
	}
	if diff := cmp.Diff(theirs, lines); diff != "" {
		t.Errorf("(-thin_ls +ours):\n%s", diff)
	}
	all, err := r.DataBlocks(t.Context())
	must(t, err)
	if all.Blocks() != r.Superblock().DataUsed {
		t.Errorf("%d data blocks are mapped, the superblock says %d", all.Blocks(), r.Superblock().DataUsed)
	}
	if _, err := r.DataBlocks(t.Context(), 2, 3); !errors.Is(err, failure.NotFound) {
		t.Errorf("of a device that is not there: %v", err)
	}
}

// The mappings of a device, turned around, are what thin_rmap says of it.
func TestMappingsAsThinRmap(t *testing.T) {
	m := kernelImage(t)
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, m, 0o600))
	r, err := metadata.Open(m)
	must(t, err)
	// Of devices that have a tree in common thin_rmap names one.
	var ours []string
	for _, id := range []uint32{1, 2, 7} {
		for run, err := range r.Mappings(id) {
			must(t, err)
			ours = append(ours, fmt.Sprintf("data %d..%d -> thin(%d) %d..%d", run.Data, run.Data+run.Length, id, run.Origin, run.Origin+run.Length))
		}
	}
	theirs := strings.Split(strings.TrimSpace(tool(t, "thin_rmap", "--region", "0..1024", path)), "\n")
	slices.Sort(ours)
	slices.Sort(theirs)
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("(-thin_rmap +ours):\n%s", diff)
	}
}

func TestDataBlocksOfRandomPools(t *testing.T) {
	randomly(t, "20", func(t *testing.T, p pool) {
		r, err := metadata.Open(inMemory(t, p, metadataBlocks))
		must(t, err)
		var runs []extent.Extent
		for _, d := range p.devices {
			for _, run := range d.Runs {
				runs = append(runs, extent.Extent{Start: run.Data, Length: run.Length})
			}
		}
		got, err := r.DataBlocks(t.Context())
		must(t, err)
		if diff := cmp.Diff(extent.Of(runs...), got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// An image is never larger than PackedBlocks says, and a large one not much
// smaller.
func TestPackedBlocks(t *testing.T) {
	randomly(t, "20", func(t *testing.T, p pool) {
		c := metadata.Content{DataBlocks: p.DataBlocks, Devices: uint64(len(p.devices))}
		mapped := make([]int, p.DataBlocks)
		for _, d := range p.devices {
			c.Mappings += d.MappedBlocks
			for _, run := range d.Runs {
				for i := range run.Length {
					if mapped[run.Data+i]++; mapped[run.Data+i] == 3 {
						c.Often++
					}
				}
			}
		}
		inMemory(t, p, int(c.PackedBlocks())) // it would not fit
	})
	const n = 2_000_000
	said := metadata.Content{DataBlocks: n, Mappings: n, Devices: 1}.PackedBlocks()
	m := make(image, said*metadata.BlockSize)
	must(t, mapped(n, 1, func(sb metadata.Superblock) metadata.Sink {
		b, err := metadata.NewBuilder(m, said, sb)
		must(t, err)
		return b
	}))
	r, err := metadata.Open(m)
	must(t, err)
	if used := r.Superblock().MetadataUsed; said-used > used/100 {
		t.Errorf("said %d blocks, used %d", said, used)
	}
}
