// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// lose spoils the newest copy of the map, and shows that it counts.
func (w *world) lose() {
	w.t.Helper()
	copies, err := layout.MapCopies(w.disk(layout.MapName), clusterID)
	w.must(err)
	// Copies take turns; the first, of generation 1, is A.
	loseHeader(w.g.Disk(layout.MapName), int64(4096*((copies[0].Stamp.Generation+1)%2)))
	if _, _, err := layout.ReadMap(w.disk(layout.MapName), clusterID); !errors.Is(err, layout.ErrDamaged) || !strings.Contains(failure.HintOf(err), "--rebuild-map") {
		w.t.Fatal(err)
	}
}

func TestRebuildMap(t *testing.T) {
	ctx := t.Context()
	w := dead(t)
	w.done(2, request.Create{ID: id(7), Name: "gone", Size: 512})
	left := w.g.Disk(layout.Thin.Name(id(7)))
	w.done(2, request.Delete{Volume: 3})
	w.done(2, request.Create{ID: id(6), Name: "late", Size: 512}) // the copy that is left does not know it
	w.must(w.g.Create(ctx, layout.Thin.Name(id(7)), uint64(left.Size())))
	copyDisk(t, left, w.g.Disk(layout.Thin.Name(id(7))))

	before, stamp := w.readMap()
	if whole, err := w.RebuildMap(ctx, true); err != nil || whole.Epoch != stamp.Epoch || len(whole.Volumes) != 0 {
		t.Fatalf("a map that is whole: %+v, %v", whole, err)
	}
	if after, now := w.readMap(); !cmp.Equal(before, after) || stamp != now {
		t.Fatal("a map that is whole was written")
	}
	w.lose()
	if _, err := w.RebuildMap(ctx, false); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "thin stop") {
		t.Fatal(err)
	}
	got, err := w.RebuildMap(ctx, true)
	want := master.Rebuilt{
		Epoch: 2, Hosts: []string{"one", "two"},
		Volumes: []master.RebuiltVolume{{1, "vol", master.FromMetadata}, {2, "coming", master.FromStored}, {4, id(6).String(), master.FromStored}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	if epoch, is, err := w.Reigns(ctx); epoch != 2 || !is || err != nil {
		t.Error(epoch, is, err)
	}
	runs := []layout.MappingRun{{Virtual: 0, Physical: 1, Length: 1}, {Virtual: 4, Physical: 2, Length: 2}}
	if diff := cmp.Diff(runs, w.stored(1).Runs); diff != "" {
		t.Error(diff)
	}
	m, _ := w.readMap()
	if free := owned(m, layout.Free, 0).Blocks(); free != blocks-1-3 || m.NextVolume != 5 || m.NextHost != 3 {
		t.Errorf("%d blocks are free, %+v", free, m)
	}
	if _, err := w.ask(1, request.Grant{Blocks: 1}); !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "--rejoin") {
		t.Error(err)
	}
	found, err := w.Check(ctx, master.CheckOptions{Offline: true})
	if err != nil || len(found) != 1 || !strings.Contains(found[0].Object, id(7).String()) {
		t.Errorf("%+v, %v", found, err)
	}
}

// Two that have the same block are named, and nothing changes.
func TestRebuildConflict(t *testing.T) {
	ctx := t.Context()
	w := dead(t)
	w.done(1, request.Create{ID: id(5), Name: "thief", Size: 8 * blockSize})
	v := w.volume(3)
	m := layout.Mapping{Number: 3, BlockSize: blockSize, Size: v.Size, Runs: []layout.MappingRun{{Physical: 2, Length: 1}}}
	w.must(layout.WriteMapping(w.disk(layout.Thin.Name(v.UUID)), clusterID, v.UUID, 1, 2, 1, m))
	w.lose()
	before := contents(t, w.g)
	for range 2 {
		_, err := w.RebuildMap(ctx, true)
		if !errors.Is(err, failure.Problems) || !strings.Contains(failure.HintOf(err), "lvremove") ||
			!strings.Contains(err.Error(), layout.Thin.Name(id(5))) || !strings.Contains(err.Error(), layout.Thin.Name(id('v'))) {
			t.Fatalf("%v, hint %q", err, failure.HintOf(err))
		}
	}
	if diff := cmp.Diff(before, contents(t, w.g)); diff != "" {
		t.Error(diff)
	}
	w.rot(1)
	if _, err := w.RebuildMap(ctx, true); !errors.Is(err, failure.Problems) || !strings.Contains(err.Error(), layout.Host.Name(id(1))) {
		t.Errorf("damaged metadata: %v", err)
	}
}
