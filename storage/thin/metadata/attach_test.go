// SPDX-License-Identifier: Apache-2.0

package metadata_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/metadata"
)

// A volume is attached by an image that has disk 0 anew, the devices of the old
// image, and one more.
func TestStreamIntoALargerImage(t *testing.T) {
	old := inMemory(t, small(), 64)
	r, err := metadata.Open(old)
	must(t, err)
	m := make(image, 64*metadata.BlockSize)
	b, err := metadata.NewBuilder(m, 64, r.Superblock())
	must(t, err)
	must(t, b.Device(metadata.Device{ID: 0}))
	must(t, b.Map(metadata.Run{Origin: 20, Data: 20, Length: 480}))
	must(t, r.Stream(t.Context(), b, 1, 2))
	must(t, b.Device(metadata.Device{ID: 9, SnapTime: 2}))
	must(t, b.Map(metadata.Run{Origin: 3, Data: 15, Length: 5, Time: 2}))
	must(t, b.Finish())

	got, was := read(t, m), small()
	want := []device{
		{metadata.Device{MappedBlocks: 480}, []metadata.Run{{Origin: 20, Data: 20, Length: 480}}},
		was.devices[1], was.devices[2],
		{metadata.Device{ID: 9, SnapTime: 2, MappedBlocks: 5}, []metadata.Run{{Origin: 3, Data: 15, Length: 5, Time: 2}}},
	}
	if diff := cmp.Diff(want, got.devices); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if found := problems(t, m, metadata.CheckOptions{Times: true, Sharing: true, Reserved: []uint32{0}}); found != nil {
		t.Errorf("%q", found)
	}
	if diff := cmp.Diff(r.Superblock().TransactionID, got.TransactionID); diff != "" {
		t.Errorf("transaction (-want +got):\n%s", diff)
	}
}
