// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"context"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// pool is what an image is expected to say.
type pool struct {
	metadata.Superblock
	devices []device
}

type device struct {
	metadata.Device
	Runs []metadata.Run
}

// stream gives the pool to a sink.
func (p pool) stream(sink metadata.Sink) error {
	for _, d := range p.devices {
		if err := sink.Device(d.Device); err != nil {
			return err
		}
		for _, run := range d.Runs {
			if err := sink.Map(run); err != nil {
				return err
			}
		}
	}
	return sink.Finish()
}

// map adds a run and joins it with the one before, as a reader does.
func (d *device) add(run metadata.Run) {
	d.MappedBlocks += run.Length
	if n := len(d.Runs); n > 0 {
		last := &d.Runs[n-1]
		if last.Origin+last.Length == run.Origin && last.Data+last.Length == run.Data && last.Time == run.Time {
			last.Length += run.Length
			return
		}
	}
	d.Runs = append(d.Runs, run)
}

// mostMappings is what thin_restore, which leaves nodes half full, has room for in a test
// image, whatever lies between and however often blocks are mapped.
const mostMappings = 400_000

// randomPool draws pools from empty ones to such whose trees have three levels
// and whose blocks are mapped many times.
func randomPool(t *rapid.T) pool {
	p := pool{Superblock: metadata.Superblock{
		Time:          rapid.Uint32Range(0, metadata.MaxTime).Draw(t, "time"),
		TransactionID: rapid.Uint64().Draw(t, "transaction"),
		NeedsCheck:    rapid.Bool().Draw(t, "needs_check"),
		DataBlockSize: 128 * rapid.Uint32Range(1, 16384).Draw(t, "data block size"),
		DataBlocks:    rapid.Uint64Range(1, 200_000).Draw(t, "data blocks"),
	}}
	ids := rapid.SliceOfNDistinct(rapid.Uint32Range(0, metadata.MaxDevices-1), 0, 6, rapid.ID).Draw(t, "ids")
	if rapid.IntRange(0, 9).Draw(t, "many devices") == 0 {
		for id := range uint32(rapid.IntRange(100, 300).Draw(t, "devices")) {
			ids = append(ids, 3*id)
		}
	}
	slices.Sort(ids)
	left := uint64(mostMappings)
	for _, id := range slices.Compact(ids) {
		d := device{Device: metadata.Device{
			ID: id, Transaction: rapid.Uint64().Draw(t, "created"),
			CreationTime: rapid.Uint32().Draw(t, "creation time"), SnapTime: rapid.Uint32().Draw(t, "snap time"),
		}}
		longest := rapid.SampledFrom([]uint64{1, 8, 70_000}).Draw(t, "longest run")
		origin := uint64(0)
		runs := rapid.IntRange(0, 600).Draw(t, "runs")
		switch {
		case len(ids) > 50:
			runs %= 3
		case longest > 8:
			runs %= 4
		}
		for range runs {
			run := metadata.Run{
				Origin: origin + rapid.SampledFrom([]uint64{0, 0, 1, 5, 1 << 33}).Draw(t, "gap"),
				Data:   rapid.Uint64Range(0, p.DataBlocks-1).Draw(t, "data"),
				Length: rapid.Uint64Range(1, longest).Draw(t, "length"),
				Time:   rapid.SampledFrom([]uint32{0, p.Time, p.Time / 2}).Draw(t, "mapped at"),
			}
			run.Length = min(run.Length, p.DataBlocks-run.Data, left)
			if run.Length == 0 {
				break
			}
			left -= run.Length
			origin = run.Origin + run.Length
			d.add(run)
		}
		p.devices = append(p.devices, d)
	}
	return p
}

// metadataBlocks is the size of test images: 32 MiB, mostly holes.
const metadataBlocks = 8192

// build writes p into a file of its own.
func build(t testing.TB, p pool) string {
	t.Helper()
	path := newImage(t)
	f := open(t, path)
	b, err := metadata.NewBuilder(f, metadataBlocks, p.Superblock)
	must(t, err)
	must(t, p.stream(b))
	return path
}

func newImage(t testing.TB) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "image")
	must(t, err)
	must(t, f.Truncate(metadataBlocks*metadata.BlockSize))
	must(t, f.Close())
	return f.Name()
}

func open(t testing.TB, path string) *layout.Volume {
	t.Helper()
	v, err := layout.Open(path, true)
	must(t, err)
	t.Cleanup(func() { v.Close() })
	return v
}

// read gives what an image says; sizes of the metadata are left out, as each
// program writes it in its own way.
func read(t testing.TB, image io.ReaderAt) pool {
	t.Helper()
	r, err := metadata.Open(image)
	must(t, err)
	p := pool{Superblock: r.Superblock()}
	p.MetadataBlocks, p.MetadataUsed = 0, 0
	for d, err := range r.Devices() {
		must(t, err)
		one := device{Device: d}
		for run, err := range r.Mappings(d.ID) {
			must(t, err)
			one.Runs = append(one.Runs, run)
		}
		p.devices = append(p.devices, one)
	}
	return p
}

// used is p with the number of data blocks that it maps.
func (p pool) used() pool {
	mapped := make([]bool, p.DataBlocks)
	for _, d := range p.devices {
		for _, run := range d.Runs {
			for i := range run.Length {
				mapped[run.Data+i] = true
			}
		}
	}
	p.DataUsed = 0
	for _, m := range mapped {
		if m {
			p.DataUsed++
		}
	}
	return p
}

func equal(t testing.TB, what string, got, want pool) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(pool{})); diff != "" {
		t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

// dump is the XML of an image.
func dump(ctx context.Context, image io.ReaderAt, w io.Writer, only ...uint32) error {
	r, err := metadata.Open(image)
	if err != nil {
		return err
	}
	x, err := metadata.NewXMLWriter(w, r.Superblock())
	if err != nil {
		return err
	}
	if err := r.Stream(ctx, x, only...); err != nil {
		return err
	}
	return x.Finish()
}

// restore makes an image of XML.
func restore(ctx context.Context, xml io.Reader, to metadata.Target) error {
	return metadata.ReadXML(ctx, xml, func(sb metadata.Superblock) (metadata.Sink, error) {
		return metadata.NewBuilder(to, metadataBlocks, sb)
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
