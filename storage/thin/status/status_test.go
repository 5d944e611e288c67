// SPDX-License-Identifier: Apache-2.0

package status_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/status"
)

const mib = 1 << 20

func TestOf(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: mib, Blocks: 100})
	m.Hosts = []layout.HostRecord{
		{Number: 1, UUID: uuid.UUID{1}, Name: "h1", State: layout.Member},
		{Number: 2, UUID: uuid.UUID{2}, Name: "h2", State: layout.Fenced, Evidence: "operator:h2"},
	}
	m.Volumes = []layout.VolumeRecord{
		{Number: 1, UUID: uuid.UUID{11}, Name: "a", Size: 64 * mib, State: layout.Attached, Host: 1, Generation: 2, Bases: []uint32{1}},
		{Number: 2, UUID: uuid.UUID{12}, Name: "b", Size: 96 * mib, State: layout.Offline, Generation: 3, Bases: []uint32{1}},
		{Number: 3, UUID: uuid.UUID{13}, Name: "c", Size: 40 * mib, State: layout.Suspect, Generation: 5},
	}
	give := func(kind layout.OwnerKind, number uint32, start, length uint64) {
		m.Give(extent.Of(extent.Extent{Start: start, Length: length}), layout.Owner{Kind: kind, Number: number})
	}
	give(layout.OfHost, 1, 10, 20)
	give(layout.OfHost, 2, 30, 5)
	give(layout.OfVolume, 2, 40, 3)
	give(layout.OfBase, 1, 50, 7)
	s := status.Of("san", uuid.UUID{9}, m, layout.Stamp{Epoch: 4, Generation: 17})
	s.WithPool(1, devmapper.PoolStatus{DataUsed: 85, DataTotal: 100, MetadataUsed: 256, MetadataTotal: 1024, Mode: devmapper.OutOfDataSpace})
	own, none := uint64(3*mib), uint64(0)
	want := status.Status{
		Schema: "diskhook.thin-status/v1", Cluster: "san", UUID: uuid.UUID{9}, Epoch: 4, Generation: 17, BlockSize: mib,
		Capacity: status.Capacity{
			Total: 100 * mib, Free: 64 * mib, Granted: 25 * mib, Offline: 3 * mib, Shared: 7 * mib, Label: mib, Virtual: 200 * mib, Overcommit: 2,
		},
		Hosts: []status.Host{
			{Name: "h1", UUID: uuid.UUID{1}, Number: 1, State: "member", Granted: 20 * mib, Volumes: 1, Virtual: 64 * mib},
			{Name: "h2", UUID: uuid.UUID{2}, Number: 2, State: "fenced", Granted: 5 * mib, Evidence: "operator:h2"},
		},
		Volumes: []status.Volume{
			{Name: "a", UUID: uuid.UUID{11}, Number: 1, Size: 64 * mib, State: "attached", Host: "h1", Generation: 2, Shared: 7 * mib},
			{Name: "b", UUID: uuid.UUID{12}, Number: 2, Size: 96 * mib, State: "offline", Generation: 3, Own: &own, Shared: 7 * mib},
			{Name: "c", UUID: uuid.UUID{13}, Number: 3, Size: 40 * mib, State: "suspect", Generation: 5, Own: &none},
		},
		Pool: &status.Pool{Slack: 15 * mib, Mode: "out_of_data_space", MetadataUsed: mib, MetadataTotal: 4 * mib, MetadataPercent: 25, DataPercent: 25},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	sum := s.Capacity.Free + s.Capacity.Granted + s.Capacity.Offline + s.Capacity.Shared + s.Capacity.Label
	if sum != s.Capacity.Total {
		t.Errorf("the parts make %d of %d", sum, s.Capacity.Total)
	}
}

// Every state has a word, or JSON would have an empty one.
func TestStatesHaveWords(t *testing.T) {
	for s := layout.Offline; s <= layout.Suspect; s++ {
		if s.String() == "" {
			t.Errorf("volume state %d", s)
		}
	}
	for s := layout.Member; s <= layout.Recovered; s++ {
		if s.String() == "" {
			t.Errorf("host state %d", s)
		}
	}
}
