// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/metadata"
)

// An image whose devices came out of turn says what one says whose came in order.
func TestDevicesAheadOfTheirTurn(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		p := randomPool(r)
		m := make(image, metadataBlocks*metadata.BlockSize)
		b, err := metadata.NewBuilder(m, metadataBlocks, p.Superblock)
		must(t, err)
		var early []device
		for _, i := range rapid.Permutation(indices(len(p.devices))).Draw(r, "order") {
			if rapid.Bool().Draw(r, "ahead") {
				early = append(early, p.devices[i])
			}
		}
		after := rapid.IntRange(0, len(p.devices)).Draw(r, "devices in their turn before") // that many, if their ids allow it
		inTurn := slices.DeleteFunc(slices.Clone(p.devices), func(d device) bool {
			return slices.ContainsFunc(early, func(e device) bool { return e.ID == d.ID })
		})
		for i, d := range inTurn {
			lower := slices.ContainsFunc(early, func(e device) bool { return e.ID < d.ID })
			if len(early) > 0 && (i >= after || lower) {
				ahead(t, b, m, early)
				early = nil
			}
			must(t, b.Device(d.Device))
			for _, run := range d.Runs {
				must(t, b.Map(run))
			}
		}
		ahead(t, b, m, early)
		must(t, b.Finish())
		p.NeedsCheck = read(t, m).NeedsCheck
		equal(t, "the image", read(t, m), p.used())
		report, err := metadata.Check(t.Context(), m, metadataBlocks, metadata.CheckOptions{})
		if err != nil || len(report.Problems) != 0 {
			r.Fatalf("%v, %v", report.Problems, err)
		}
	})
}

func indices(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// ahead writes devices ahead and reads each back.
func ahead(t *testing.T, b *metadata.Builder, m image, devices []device) {
	t.Helper()
	for _, d := range devices {
		must(t, b.Ahead(d.Device))
		for _, run := range d.Runs {
			must(t, b.Map(run))
		}
	}
	for _, d := range devices {
		var got []metadata.Run
		for run, err := range b.Written(m, d.ID) {
			must(t, err)
			got = append(got, run)
		}
		if diff := cmp.Diff(d.Runs, got); diff != "" {
			t.Fatalf("device %d (-want +got):\n%s", d.ID, diff)
		}
	}
}

func TestAheadRefuses(t *testing.T) {
	m := make(image, 64*metadata.BlockSize)
	b, err := metadata.NewBuilder(m, 64, metadata.Superblock{DataBlockSize: 128, DataBlocks: 100})
	must(t, err)
	must(t, b.Device(metadata.Device{ID: 3}))
	must(t, b.Ahead(metadata.Device{ID: 5}))
	for _, c := range []struct {
		err  error
		want string
	}{
		{b.Ahead(metadata.Device{ID: 5}), "thin device 5: it was written ahead of the others"},
		{b.Device(metadata.Device{ID: 5}), "thin device 5: it was written ahead of the others"},
		{b.Ahead(metadata.Device{ID: 3}), "thin device 3 comes after 3"},
		{b.Ahead(metadata.Device{ID: 1 << 24}), "thin device 16777216: ids are below 16777216"},
	} {
		if !errors.Is(c.err, failure.Usage) || fmt.Sprint(c.err) != c.want {
			t.Errorf("got %v, want %s", c.err, c.want)
		}
	}
	for _, err := range b.Written(m, 3) {
		if !errors.Is(err, failure.NotFound) {
			t.Error(err)
		}
	}
}

// What a device ahead maps is read from the disk, and a disk that does not keep it is
// found out.
func TestWrittenReadsTheDisk(t *testing.T) {
	m := make(image, 64*metadata.BlockSize)
	b, err := metadata.NewBuilder(m, 64, metadata.Superblock{DataBlockSize: 128, DataBlocks: 100})
	must(t, err)
	must(t, b.Ahead(metadata.Device{ID: 5}))
	must(t, b.Map(metadata.Run{Origin: 1, Data: 2, Length: 3}))
	for _, err := range b.Written(m, 5) {
		must(t, err)
	}
	m[metadata.BlockSize+40] ^= 1
	for _, err := range b.Written(m, 5) {
		if !errors.Is(err, metadata.ErrDamaged) {
			t.Error(err)
		}
	}
}

// thin_check takes an image for sound whose devices all came out of turn.
func TestToolsAgreeOnDevicesAhead(t *testing.T) {
	randomly(t, "5", func(t *testing.T, p pool) {
		path := newImage(t)
		f := open(t, path)
		b, err := metadata.NewBuilder(f, metadataBlocks, p.Superblock)
		must(t, err)
		for _, d := range slices.Backward(p.devices) {
			must(t, b.Ahead(d.Device))
			for _, run := range d.Runs {
				must(t, b.Map(run))
			}
		}
		must(t, b.Finish())
		equal(t, "the image", read(t, f), p.used())
		tool(t, "thin_check", path)
	})
}

// An image that devices were dropped from says nothing of them, whether they were begun
// again or not, and thin_check finds no block lost.
func TestDevicesAheadDropped(t *testing.T) {
	randomly(t, "20", func(t *testing.T, p pool) {
		path := newImage(t)
		f := open(t, path)
		b, err := metadata.NewBuilder(f, metadataBlocks, p.Superblock)
		must(t, err)
		begin := func(d device, as func(metadata.Device) error) {
			must(t, as(d.Device))
			for _, run := range d.Runs {
				must(t, b.Map(run))
			}
		}
		for _, d := range p.devices {
			begin(d, b.Ahead)
		}
		for i, d := range p.devices {
			if i%3 != 0 {
				must(t, b.Drop(f, d.ID))
			}
		}
		left := p
		left.devices = nil
		for i, d := range p.devices {
			if i%3 == 1 {
				begin(d, b.Device)
			}
			if i%3 != 2 {
				left.devices = append(left.devices, d)
			}
		}
		must(t, b.Finish())
		equal(t, "the image", read(t, f), left.used())
		report, err := metadata.Check(t.Context(), f, metadataBlocks, metadata.CheckOptions{})
		if err != nil || len(report.Problems) != 0 {
			t.Fatalf("%v, %v", report.Problems, err)
		}
		tool(t, "thin_check", path)
	})
}
