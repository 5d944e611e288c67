// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/directio"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

func bytesOf(t testing.TB, d layout.Device) []byte {
	t.Helper()
	b := directio.Buffer(d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// contentsOf is where copy 0 or 1 has its contents, by the package's comment.
func contentsOf(t *testing.T, d layout.Device, which int) int64 {
	return int64(binary.LittleEndian.Uint64(bytesOf(t, d)[which*4096+64:]))
}

// restamp changes a header and seals it again.
func restamp(t *testing.T, d *layouttest.Disk, which int, change func([]byte)) {
	b := bytesOf(t, d)
	for _, at := range []int{which * 4096, which*4096 + 4096 - 512} {
		h := b[at:][:512]
		change(h)
		binary.LittleEndian.PutUint32(h[508:], crc32.Checksum(h[:508], crc32.MakeTable(crc32.Castagnoli)))
		d.Write(int64(at), h)
	}
}

// The bytes of version 1. A change of them needs another version.
func TestGolden(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: 1 << 20, Blocks: 1 << 20})
	m.NextHost, m.NextVolume, m.NextBase = 3, 3, 2
	m.Hosts = []layout.HostRecord{
		{Number: 1, UUID: object, Name: "node-1", State: layout.Member, Image: 4, Sequence: 17},
		{Number: 2, UUID: other, Name: "node-2", State: layout.Fenced, Image: 1, Sequence: 3, Evidence: "fence_ipmilan: off"},
	}
	m.Volumes = []layout.VolumeRecord{{Number: 2, UUID: object, Name: "db", Size: 10 << 30, State: layout.Offline, Generation: 5, Bases: []uint32{1}}}
	m.Give(extent.Of(extent.Extent{Start: 100, Length: 50}), layout.Owner{Kind: layout.OfHost, Number: 1})
	m.Give(extent.Of(extent.Extent{Start: 200, Length: 7}), layout.Owner{Kind: layout.OfVolume, Number: 2})
	m.Give(extent.Of(extent.Extent{Start: 300, Length: 9}), layout.Owner{Kind: layout.OfBase, Number: 1})
	for name, write := range map[string]func(d layout.Device) error{
		"map": func(d layout.Device) error { _, err := layout.CreateMap(d, cluster, 3, m); return err },
		"mapping": func(d layout.Device) error {
			return layout.CreateMapping(d, cluster, object, 3, layout.Mapping{Number: 2, BlockSize: 1 << 20, Size: 10 << 30, Runs: []layout.MappingRun{
				{Virtual: 0, Physical: 200, Length: 7}, {Virtual: 9, Physical: 300, Length: 9, Base: 1},
			}})
		},
		"host": func(d layout.Device) error {
			h := hostOf(0)
			h.Journal = []byte("attach 2")
			_, err := layout.CreateHost(d, cluster, object, 3, h)
			return err
		},
		"request": func(d layout.Device) error {
			return layout.WriteRequest(d, cluster, object, layout.Message{Sequence: 18, Epoch: 3, Code: 2, Body: []byte("1024")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := layouttest.New(name, 4<<20)
			if err := write(disk); err != nil {
				t.Fatal(err)
			}
			got := dump(bytesOf(t, disk))
			path := "testdata/" + name + ".v1.txt"
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// dump is like hexdump(1): lines of 16 bytes that are not all zero.
func dump(b []byte) string {
	var text strings.Builder
	for at := 0; at < len(b); at += 16 {
		if line := b[at:][:16]; string(line) != string(make([]byte, 16)) {
			text.WriteString(hex.EncodeToString(binary.BigEndian.AppendUint32(nil, uint32(at))) + "  " + hex.EncodeToString(line) + "\n")
		}
	}
	return text.String()
}

// contentsEnd is where the contents of a copy A end that begins at 8192.
func contentsEnd(b []byte) int { return 8192 + int(binary.LittleEndian.Uint64(b[72:])) }

// reseal makes copy A pass its checksums, if its header still names a range.
func reseal(b []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	offset, length := binary.LittleEndian.Uint64(b[64:]), binary.LittleEndian.Uint64(b[72:])
	if offset < uint64(len(b)) && length < uint64(len(b))-offset {
		binary.LittleEndian.PutUint32(b[80:], crc32.Checksum(b[offset:][:length], table))
	}
	binary.LittleEndian.PutUint32(b[508:], crc32.Checksum(b[:508], table))
	copy(b[4096-512:4096], b[:512])
}
