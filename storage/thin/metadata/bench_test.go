// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// kinds of mappings: how many blocks lie side by side.
var runLengths = []uint64{1, 8, 1 << 30}

// mapped is a pool of one device with n blocks in runs of this length.
func mapped(n, length uint64, sink func(metadata.Superblock) metadata.Sink) error {
	s := sink(metadata.Superblock{Time: 1, DataBlockSize: 128, DataBlocks: n})
	if err := s.Device(metadata.Device{ID: 1, MappedBlocks: n, SnapTime: 1}); err != nil {
		return err
	}
	for at := uint64(0); at < n; {
		run := metadata.Run{Origin: at, Data: at, Length: min(length, n-at), Time: 1}
		if length < n { // from the end, so that neighbours are none
			run.Data = n - at - run.Length
		}
		if err := s.Map(run); err != nil {
			return err
		}
		at += run.Length
	}
	return s.Finish()
}

func BenchmarkBuild(b *testing.B) {
	for _, length := range runLengths {
		b.Run(fmt.Sprintf("runs-of-%d", length), func(b *testing.B) {
			f := scratch(b)
			const n = 10_000_000
			for b.Loop() {
				must(b, mapped(n, length, func(sb metadata.Superblock) metadata.Sink {
					w, err := metadata.NewBuilder(f, 1<<17, sb)
					must(b, err)
					return w
				}))
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mmappings/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, length := range runLengths {
		b.Run(fmt.Sprintf("runs-of-%d", length), func(b *testing.B) {
			f := scratch(b)
			const n = 10_000_000
			must(b, mapped(n, length, func(sb metadata.Superblock) metadata.Sink {
				w, err := metadata.NewBuilder(f, 1<<17, sb)
				must(b, err)
				return w
			}))
			for b.Loop() {
				r, err := metadata.Open(f)
				must(b, err)
				var sum uint64
				for run, err := range r.Mappings(1) {
					if err != nil {
						b.Fatal(err)
					}
					sum += run.Length
				}
				if sum != n {
					b.Fatal(sum)
				}
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mmappings/s")
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	f := scratch(b)
	const n = 10_000_000
	must(b, mapped(n, 1, func(sb metadata.Superblock) metadata.Sink {
		w, err := metadata.NewBuilder(f, 1<<17, sb)
		must(b, err)
		return w
	}))
	for b.Loop() {
		report, err := metadata.Check(b.Context(), f, 1<<17, metadata.CheckOptions{Times: true, Sharing: true})
		must(b, err)
		if len(report.Problems) > 0 {
			b.Fatal(report.Problems)
		}
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mmappings/s")
}

// scratch is a file; TMPDIR says on which disk.
func scratch(b *testing.B) *layout.Volume {
	b.Helper()
	path := filepath.Join(b.TempDir(), "image")
	must(b, os.WriteFile(path, nil, 0o600))
	must(b, os.Truncate(path, 1<<17*metadata.BlockSize))
	return open(b, path)
}

// BenchmarkXML has no image on either side: what the text alone costs.
func BenchmarkXML(b *testing.B) {
	const n = 1_000_000
	var xml bytes.Buffer
	write := func(w io.Writer) {
		must(b, mapped(n, 1, func(sb metadata.Superblock) metadata.Sink {
			x, err := metadata.NewXMLWriter(w, sb)
			must(b, err)
			return x
		}))
	}
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			write(io.Discard)
		}
		b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mmappings/s")
	})
	write(&xml)
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			must(b, metadata.ReadXML(b.Context(), bytes.NewReader(xml.Bytes()),
				func(metadata.Superblock) (metadata.Sink, error) { return discard{}, nil }))
		}
		b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mmappings/s")
	})
}

// discard is a Sink that forgets.
type discard struct{}

func (discard) Device(metadata.Device) error { return nil }
func (discard) Map(metadata.Run) error       { return nil }
func (discard) Finish() error                { return nil }
