// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"diskhook/storage/thin/metadata"
)

// allocated is how many bytes f asks for, all in all.
func allocated(t *testing.T, f func() error) int64 {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := f()
	runtime.ReadMemStats(&after)
	must(t, err)
	return int64(after.TotalAlloc - before.TotalAlloc)
}

// nowhere is a Target that forgets.
type nowhere struct{}

func (nowhere) WriteAt(b []byte, _ int64) (int, error) { return len(b), nil }
func (nowhere) Flush() error                           { return nil }

// Memory does not depend on how many mappings there are: four times as many
// take no more, but for a quarter of a byte for each data block that is mapped.
func TestMemoryIsConstant(t *testing.T) {
	const few, many, slack = 250_000, 1_000_000, 64 << 10
	images, texts := map[uint64]image{}, map[uint64][]byte{}
	for _, n := range []uint64{few, many} {
		images[n] = make(image, 8192*metadata.BlockSize)
		must(t, mapped(n, 1, func(sb metadata.Superblock) metadata.Sink { return builder(t, images[n], sb) }))
		var xml bytes.Buffer
		must(t, dump(t.Context(), images[n], &xml))
		texts[n] = xml.Bytes()
	}
	for name, do := range map[string]func(n uint64) error{
		"build": func(n uint64) error {
			return mapped(n, 1, func(sb metadata.Superblock) metadata.Sink { return builder(t, nowhere{}, sb) })
		},
		"read": func(n uint64) error {
			r, err := metadata.Open(images[n])
			must(t, err)
			for _, err := range r.Mappings(1) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"check": func(n uint64) error {
			_, err := metadata.Check(t.Context(), images[n], 8192, metadata.CheckOptions{Sharing: true, Times: true})
			return err
		},
		"write XML": func(n uint64) error { return dump(t.Context(), images[n], io.Discard) },
		"read XML":  func(n uint64) error { return restore(t.Context(), bytes.NewReader(texts[n]), nowhere{}) },
	} {
		one, four := allocated(t, func() error { return do(few) }), allocated(t, func() error { return do(many) })
		if more := four - one; more > (many-few)/4+slack {
			t.Errorf("%s: %d bytes for %d mappings, %d for %d", name, one, few, four, many)
		}
	}
}

func builder(t testing.TB, to metadata.Target, sb metadata.Superblock) *metadata.Builder {
	t.Helper()
	b, err := metadata.NewBuilder(to, 8192, sb)
	must(t, err)
	return b
}
