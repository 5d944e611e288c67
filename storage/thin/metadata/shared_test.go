// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/metadata"
)

// snapshotted is small, changed as the kernel does: device 3 became a snapshot
// of device 0, so that both have one tree, and there is a metadata snapshot,
// which has all trees in common with the pool. thin_check says that it is right.
func snapshotted(t *testing.T) image {
	t.Helper()
	const twice = 0b01 // a count of two, the higher bit first
	m := inMemory(t, small(), 64)
	root := func(at int) uint64 { return m.u64(0, at) }
	first, empty := m.u64(root(mappings), mappingValues), m.u64(root(mappings), mappingValues+24)
	m.change(root(mappings), metadata.NodeSalt, mappingValues+24, first, 8)
	m.change(root(details), metadata.NodeSalt, 32+8*126+72, 990, 8)
	bitmap := m.u64(root(metadataList), 16)
	count := func(block, n uint64) {
		at := 16 + int(block/4)
		shift := block % 4 * 2
		bits := m.u64(bitmap, at)&^(3<<shift) | n<<shift
		m.change(bitmap, metadata.BitmapSalt, at, bits, 1)
	}
	count(first, twice)
	count(root(mappings), twice)
	count(root(details), twice)
	// The block that is no longer needed becomes the metadata snapshot.
	copy(m.block(empty), m.block(0))
	clear(m.block(empty)[64:320])
	metadata.Seal(m.block(empty), empty, metadata.SuperblockSalt)
	m.change(0, metadata.SuperblockSalt, 56, empty, 8)
	return m
}

func TestTreesThatDevicesShare(t *testing.T) {
	m := snapshotted(t)
	if found := problems(t, m, metadata.CheckOptions{Times: true}); found != nil {
		t.Errorf("%q", found)
	}
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, m, 0o600))
	tool(t, "thin_check", path)

	want := read(t, m)
	if diff := cmp.Diff(want.devices[0].Runs, want.devices[3].Runs); diff != "" {
		t.Errorf("a snapshot's runs (-origin +snapshot):\n%s", diff)
	}
	var ours bytes.Buffer
	must(t, dump(t.Context(), m, &ours))
	if diff := cmp.Diff(tool(t, "thin_dump", path), ours.String()); diff != "" {
		t.Errorf("dumps (-thin_dump +ours):\n%s", diff)
	}

	// Nothing is as old as it has to be, for both have a snap time of zero.
	report, err := metadata.Check(t.Context(), m, 64, metadata.CheckOptions{Sharing: true})
	must(t, err)
	if len(report.Problems) != 100 || report.More != 990-100 {
		t.Errorf("%d problems and %d more, want one for each block", len(report.Problems), report.More)
	}
	report, err = metadata.Check(t.Context(), m, 64, metadata.CheckOptions{Sharing: true, Reserved: []uint32{0, 3}})
	must(t, err)
	if len(report.Problems) != 0 {
		t.Errorf("the metadata snapshot shares as well, which does not count: %v", report.Problems)
	}
}

func TestMetadataSnapshot(t *testing.T) {
	m := snapshotted(t)
	live, err := metadata.Open(m)
	must(t, err)
	held, err := live.Snapshot()
	must(t, err)
	if held.Superblock() != live.Superblock() {
		t.Errorf("snapshot's superblock %+v, pool's %+v", held.Superblock(), live.Superblock())
	}
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, m, 0o600))
	var ours bytes.Buffer
	x, err := metadata.NewXMLWriter(&ours, held.Superblock())
	must(t, err)
	must(t, held.Stream(t.Context(), x))
	must(t, x.Finish())
	// thin_dump has the sizes from the snapshot, which has none.
	theirs := bytes.Replace([]byte(tool(t, "thin_dump", "-m", path)), []byte(`nr_data_blocks="0"`), []byte(`nr_data_blocks="1000"`), 1)
	if diff := cmp.Diff(string(theirs), ours.String()); diff != "" {
		t.Errorf("(-thin_dump -m +ours):\n%s", diff)
	}
}
