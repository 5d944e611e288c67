// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/group/grouptest"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

const (
	blockSize = layout.MinBlockSize
	blocks    = 60
)

var clusterID = uuid.MustParse("0c4e8e4c-5d0f-4fd5-8c39-3f3b3f3b7f10")

func id(n byte) uuid.UUID { return uuid.UUID{0: n, 6: 0x40, 8: 0x80, 15: 1} }

// nominee is a master on a host of its own, over a group.
func nominee(t testing.TB, g group.Group) *master.Master {
	return &master.Master{
		Group: g, Cluster: clusterID, Name: "c", Layout: host.Layout{Root: t.TempDir()}, Run: command.System{}, Log: slog.New(slog.DiscardHandler),
	}
}

// tester is a test, or a draw of one.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// world is a cluster with a master, in memory.
type world struct {
	*master.Master
	t        tester
	g        *grouptest.Group
	sequence map[uuid.UUID]uint64
}

func newWorld(t *testing.T) *world {
	g := grouptest.New(1 << 30)
	w := &world{nominee(t, g), t, g, map[uuid.UUID]uint64{}}
	if _, err := w.Init(t.Context(), master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// join makes a host, with the smallest windows.
func (w *world) join(n byte, name string) uint32 {
	w.t.Helper()
	number, err := w.Join(context.Background(), master.Newcomer{UUID: id(n), Name: name, Metadata: layout.MinWindow})
	w.must(err)
	return number
}

// disk opens a volume.
func (w *world) disk(name string) group.Volume {
	w.t.Helper()
	v, err := w.g.Open(context.Background(), name, true)
	w.must(err)
	return v
}

func (w *world) readMap() (layout.Map, layout.Stamp) {
	w.t.Helper()
	m, stamp, err := layout.ReadMap(w.disk(layout.MapName), clusterID)
	w.must(err)
	return m, stamp
}

func (w *world) volume(number uint32) layout.VolumeRecord {
	w.t.Helper()
	m, _ := w.readMap()
	for _, v := range m.Volumes {
		if v.Number == number {
			return v
		}
	}
	w.t.Fatalf("volume %d is not in the map", number)
	return layout.VolumeRecord{}
}

// ask has a host ask, under its next sequence.
func (w *world) ask(n byte, r request.Request) (request.Reply, error) {
	w.sequence[id(n)]++
	return w.Channel(id(n)).Ask(context.Background(), w.sequence[id(n)], r)
}

func (w *world) done(n byte, r request.Request) request.Reply {
	w.t.Helper()
	reply, err := w.ask(n, r)
	w.must(err)
	return reply
}

// put writes a volume's next mapping, as its host does before it gives it back.
func (w *world) put(number uint32, runs ...layout.MappingRun) layout.Mapping {
	w.t.Helper()
	v := w.volume(number)
	m := layout.Mapping{Number: number, BlockSize: blockSize, Size: v.Size, Runs: runs}
	_, stamp := w.readMap()
	w.must(layout.WriteMapping(w.disk(layout.Thin.Name(v.UUID)), clusterID, v.UUID, v.Stored(), v.Generation+1, stamp.Epoch, m))
	return m
}

// stored reads a volume's mapping that counts.
func (w *world) stored(number uint32) layout.Mapping {
	w.t.Helper()
	v := w.volume(number)
	m, err := layout.ReadMapping(w.disk(layout.Thin.Name(v.UUID)), clusterID, v.UUID, v.Stored())
	w.must(err)
	return m
}
