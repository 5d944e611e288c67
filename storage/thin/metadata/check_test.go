// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"encoding/binary"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/metadata"
)

// problems are the texts of what Check finds, each behind its kind.
func problems(t testing.TB, image io.ReaderAt, options metadata.CheckOptions) []string {
	t.Helper()
	report, err := metadata.Check(t.Context(), image, metadataBlocks, options)
	must(t, err)
	if report.More > 0 {
		t.Errorf("%d more problems", report.More)
	}
	var texts []string
	for _, p := range report.Problems {
		texts = append(texts, string(p.Kind)+": "+strings.TrimPrefix(p.Text, "damaged metadata: "))
	}
	return texts
}

func TestCheckFindsNothingWrongWithRandomPools(t *testing.T) {
	randomly(t, "8", func(t *testing.T, p pool) {
		image := build(t, p)
		if found := problems(t, open(t, image), metadata.CheckOptions{}); found != nil {
			t.Fatalf("ours: %q", found)
		}
		xml, err := os.CreateTemp(t.TempDir(), "xml")
		must(t, err)
		must(t, dump(t.Context(), open(t, image), xml))
		restored := newImage(t)
		tool(t, "thin_restore", "-q", "-i", xml.Name(), "-o", restored)
		if found := problems(t, open(t, restored), metadata.CheckOptions{}); found != nil {
			t.Fatalf("thin_restore's: %q", found)
		}
	})
}

// small is a pool with everything in it: disk 0, two devices that share blocks,
// one without mappings; data block 7 is mapped three times.
func small() pool {
	p := pool{Superblock: metadata.Superblock{Time: 2, TransactionID: 9, DataBlockSize: 128, DataBlocks: 1000}}
	for _, d := range []struct {
		id, snapped uint32
		runs        []metadata.Run
	}{
		{0, 0, []metadata.Run{{Origin: 0, Data: 0, Length: 500}, {Origin: 510, Data: 510, Length: 490}}},
		{1, 2, []metadata.Run{{Origin: 0, Data: 0, Length: 10, Time: 1}, {Origin: 10, Data: 500, Length: 5, Time: 2}}},
		{2, 2, []metadata.Run{{Origin: 7, Data: 7, Length: 1, Time: 1}}},
		{3, 0, nil},
	} {
		one := device{Device: metadata.Device{ID: d.id, SnapTime: d.snapped}}
		for _, run := range d.runs {
			one.add(run)
		}
		p.devices = append(p.devices, one)
	}
	return p
}

// image is an image in memory.
type image []byte

func (m image) ReadAt(b []byte, at int64) (int, error) {
	if at >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(b, m[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m image) WriteAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[at:], b), nil
}

func (m image) Flush() error { return nil }

func (m image) block(n uint64) []byte {
	return m[n*metadata.BlockSize : (n+1)*metadata.BlockSize]
}
func (m image) u64(block uint64, at int) uint64 {
	return binary.LittleEndian.Uint64(m.block(block)[at:])
}

// change puts a number into a block and makes its checksum right again.
func (m image) change(block uint64, salt uint32, at int, v uint64, size int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(m.block(block)[at:], b[:size])
	metadata.Seal(m.block(block), block, salt)
}

// inMemory builds p with so many metadata blocks.
func inMemory(t testing.TB, p pool, blocks int) image {
	t.Helper()
	m := make(image, blocks*metadata.BlockSize)
	b, err := metadata.NewBuilder(m, uint64(blocks), p.Superblock)
	must(t, err)
	must(t, p.stream(b))
	return m
}

// Where things are in blocks; each test changes one of them.
const (
	mappings, details, dataBitmaps, dataCounts, metadataList = 320, 328, 80, 88, 208
	firstKey, mappingValues                                  = 32, 32 + 8*252
)

func TestCheckFindsWhatIsWrong(t *testing.T) {
	root := func(m image, at int) uint64 { return m.u64(0, at) }
	leafOf := func(m image, dev int) uint64 { return m.u64(root(m, mappings), mappingValues+8*dev) }
	for name, c := range map[string]struct {
		change  func(m image)
		options metadata.CheckOptions
		want    []string
	}{
		"nothing": {change: func(image) {}, options: metadata.CheckOptions{Times: true, Sharing: true, Reserved: []uint32{0}}},
		"checksum of a node": {
			change: func(m image) { m.block(leafOf(m, 2))[100] ^= 1 },
			want:   []string{"damage: block 7: not a btree node: checksum 83472fcc, content says 8917a9ca"},
		},
		"data block beyond the end": {
			change: func(m image) { m.change(leafOf(m, 2), metadata.NodeSalt, mappingValues, 1000<<24, 8) },
			want: []string{
				"damage: block 7: thin device 2: virtual block 7 is in data block 1000 of 1000",
			},
		},
		"a block that is free and in use": {
			change: func(m image) { m.change(leafOf(m, 2), metadata.NodeSalt, mappingValues, 505<<24|1, 8) },
			want: []string{
				"leak: data blocks 7 to 7: in use 2 times, where the space map says 3",
				"undercount: data blocks 505 to 505: in use 1 times, where the space map says 0",
			},
		},
		"mapped blocks": {
			change: func(m image) { m.change(root(m, details), metadata.NodeSalt, 32+8*126, 991, 8) },
			want:   []string{"damage: thin device 0: 990 blocks are mapped, where its details say 991"},
		},
		"a device without details": {
			change: func(m image) { m.change(root(m, details), metadata.NodeSalt, 16, 3, 4) },
			want:   []string{"damage: thin device 3: mappings, but no details"},
		},
		"a device without mappings": {
			change: func(m image) { m.change(root(m, mappings), metadata.NodeSalt, 16, 3, 4) },
			want: []string{
				"damage: thin device 3: details, but no mappings",
				"leak: metadata blocks 8 to 8: in use 0 times, where the space map says 1",
			},
		},
		"keys that do not ascend": {
			change: func(m image) { m.change(root(m, mappings), metadata.NodeSalt, firstKey+8, 0, 8) },
			want:   []string{"damage: block 10: key 0 follows key 0"},
		},
		"young mapping and device": {
			change: func(m image) {
				m.change(leafOf(m, 2), metadata.NodeSalt, mappingValues, 7<<24|3, 8)
				m.change(root(m, details), metadata.NodeSalt, 32+8*126+24+20, 4, 4)
			},
			options: metadata.CheckOptions{Times: true},
			want: []string{
				"rule: thin device 2: virtual block 7: mapped at 3, while the time is 2",
				"rule: thin device 1: created at 0, snapshot at 4, while the time is 2",
			},
		},
		"shared and writable": {
			change:  func(m image) { m.change(leafOf(m, 2), metadata.NodeSalt, mappingValues, 7<<24|2, 8) },
			options: metadata.CheckOptions{Sharing: true, Reserved: []uint32{0}},
			want: []string{
				"rule: thin device 2: virtual block 7: mapped at 2, snapshot at 2: a write would go into data block 7, which is shared",
			},
		},
		"count in the tree": {
			change: func(m image) { m.change(root(m, dataCounts), metadata.NodeSalt, 32+8*336, 4, 4) },
			want:   []string{"leak: data blocks 7 to 7: in use 3 times, where the space map says 4"},
		},
		"count of another block": {
			change: func(m image) { m.change(root(m, dataCounts), metadata.NodeSalt, firstKey, 8, 8) },
			want: []string{
				"damage: data space map: block 7: its count is missing",
				"undercount: data blocks 7 to 7: in use 3 times, where the space map says 0",
				"damage: data space map: block 8: a count of 3 that its bitmap does not refer to",
			},
		},
		"count beyond the end": {
			change: func(m image) {
				m.change(root(m, dataCounts), metadata.NodeSalt, firstKey+8, 5000, 8)
				m.change(root(m, dataCounts), metadata.NodeSalt, 16, 2, 4)
			},
			want: []string{"damage: data space map: block 5000: a count of 0 that its bitmap does not refer to"},
		},
		"free in the index": {
			change: func(m image) { m.change(root(m, dataBitmaps), metadata.NodeSalt, 32+8*168+8, 1, 4) },
			want:   []string{"damage: data space map: bitmap 0: 5 blocks are free, where the index says 1"},
		},
		"used in the superblock": {
			change: func(m image) { m.change(0, metadata.SuperblockSalt, 72, 994, 8) },
			want:   []string{"damage: data space map: 995 blocks are in use, where the superblock says 994"},
		},
		"bitmap of the metadata": {
			change: func(m image) { m.change(m.u64(root(m, metadataList), 16), metadata.BitmapSalt, 16, 0, 1) },
			want: []string{
				"undercount: metadata blocks 0 to 3: in use 1 times, where the space map says 0",
			},
		},
		"a loop": {
			change: func(m image) {
				leaf := leafOf(m, 2)
				m.change(leaf, metadata.NodeSalt, 4, 1, 4)
				m.change(leaf, metadata.NodeSalt, mappingValues, leaf, 8)
			},
			want: []string{"damage: block 7: btree node with 1 entries, room for 252: not even a third"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := inMemory(t, small(), 64)
			c.change(m)
			if diff := cmp.Diff(c.want, problems(t, m, c.options)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
