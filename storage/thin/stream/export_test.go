// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/stream"
)

// world is a cluster on files, with the volume and a host h1, and data.
func world(t *testing.T) (stream.Cluster, []byte) {
	t.Helper()
	g := group.Files{Dir: t.TempDir(), Capacity: 64 << 20}
	in := func(name string, bytes uint64, do func(group.Volume) error) {
		t.Helper()
		err := g.Create(t.Context(), name, bytes)
		if err == nil {
			err = group.With(t.Context(), g, name, true, do)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m := mapNow()
	m.Hosts = []layout.HostRecord{{Number: 1, UUID: uuid.UUID{1}, Name: "h1", State: layout.Member}}
	m.NextHost, m.NextVolume, m.NextBase = 2, 6, 10
	in(layout.MapName, 1<<20, func(v group.Volume) error { _, err := layout.CreateMap(v, cluster, 1, m); return err })
	_, data := dataVolume(t)
	in(layout.DataName, geometry.Bytes(), func(v group.Volume) error {
		if _, err := v.WriteAt(data[blockSize:], blockSize); err != nil {
			return err
		}
		return layout.CreateLabel(v, cluster, 1, geometry)
	})
	in(layout.Thin.Name(volume), 64<<10, func(v group.Volume) error {
		if err := layout.CreateMapping(v, cluster, volume, 1, layout.Mapping{Number: 5, BlockSize: blockSize, Size: record.Size}); err != nil {
			return err
		}
		return layout.WriteMapping(v, cluster, volume, 1, 4, 1, mapping())
	})
	return stream.Cluster{UUID: cluster, Group: g}, data
}

// commit changes the map.
func commit(t *testing.T, c stream.Cluster, change func(*layout.Map)) {
	t.Helper()
	err := group.With(t.Context(), c.Group, layout.MapName, true, func(v group.Volume) error {
		m, stamp, err := layout.ReadMap(v, cluster)
		if err != nil {
			return err
		}
		change(&m)
		_, err = layout.CommitMap(v, cluster, stamp, stamp.Epoch, m)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func attach(m *layout.Map) {
	m.Volumes[0].State, m.Volumes[0].Host, m.Volumes[0].Generation = layout.Attached, 1, 5
	m.Give(mapping().Private(), layout.Owner{Kind: layout.OfHost, Number: 1})
}

func TestExportAndRead(t *testing.T) {
	c, data := world(t)
	for _, name := range []string{record.Name, volume.String()} {
		s, err := c.Export(t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(streamOf(t), s); diff != "" {
			t.Fatal(diff)
		}
		to := &sink{content: make([]byte, record.Size)}
		err = c.Read(t.Context(), s, func(contents stream.Contents) error { return contents.Copy(t.Context(), to, nil) })
		if err != nil || !bytes.Equal(to.content, disk(data)) {
			t.Errorf("%v; equal: %v", err, bytes.Equal(to.content, disk(data)))
		}
	}
	if _, err := c.Export(t.Context(), "other", nil); !errors.Is(err, failure.NotFound) {
		t.Errorf("another volume: %v", err)
	}
}

func TestExportOfAnAttachedVolume(t *testing.T) {
	c, _ := world(t)
	commit(t, c, attach)
	_, err := c.Export(t.Context(), record.Name, nil)
	if !errors.Is(err, failure.Conflict) || !strings.HasSuffix(err.Error(), "volume "+record.Name+": it is at host h1, which alone knows its blocks") || !strings.Contains(failure.HintOf(err), "thin detach") {
		t.Errorf("%v (%s)", err, failure.HintOf(err))
	}
	s, err := c.Export(t.Context(), record.Name, func(_ context.Context, v layout.VolumeRecord) (layout.VolumeRecord, layout.Mapping, error) {
		return v, mapping(), nil
	})
	if err != nil || s.State != stream.Live || s.Generation != 5 {
		t.Fatalf("%+v, %v", s, err)
	}
	err = c.Read(t.Context(), s, func(stream.Contents) error { t.Error("a live volume's blocks are read"); return nil })
	if !errors.Is(err, stream.ErrFit) {
		t.Error(err)
	}
}

// A volume that is attached while its data are read may have changed under the
// reader.
func TestReadFindsOutAfterwards(t *testing.T) {
	c, _ := world(t)
	s, err := c.Export(t.Context(), record.Name, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Read(t.Context(), s, func(stream.Contents) error { commit(t, c, attach); return nil })
	if !errors.Is(err, stream.ErrFit) || !errors.Is(err, failure.Conflict) {
		t.Error(err)
	}
	other := c
	other.UUID = uuid.UUID{9}
	if err := other.Read(t.Context(), s, nil); !errors.Is(err, layout.ErrOtherCluster) {
		t.Errorf("another cluster's group: %v", err)
	}
}
