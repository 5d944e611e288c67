// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// dead is a cluster whose host one has a volume with three blocks, of which one was
// there when it was attached, and is about to get another volume.
func dead(t *testing.T) *world {
	w := newWorld(t)
	w.join(1, "one")
	w.join(2, "two")
	w.done(1, request.Grant{Blocks: 10})
	for _, name := range []string{"vol", "coming"} {
		w.done(1, request.Create{ID: id(name[0]), Name: name, Size: 8 * blockSize})
	}
	w.done(1, request.BeginAttach{Volume: 1})
	w.put(1, layout.MappingRun{Physical: 1, Length: 1})
	w.done(1, request.FinishDetach{Volume: 1})
	w.done(1, request.BeginAttach{Volume: 1})
	k := withholding(extent.All(blocks))
	v := w.volume(1)
	k.devices[1] = &thin{generation: v.Generation, snap: 1, maps: map[uint64]place{0: {1, 1}, 4: {2, 1}, 5: {3, 1}}}
	w.commit(1, k)
	w.done(1, request.FinishAttach{Volume: 1})
	w.done(1, request.BeginAttach{Volume: 2})
	return w
}

func TestRecover(t *testing.T) {
	ctx := t.Context()
	w := dead(t)
	if _, err := w.Recover(ctx, "one", false); !errors.Is(err, failure.Precondition) || failure.HintOf(err) == "" {
		t.Fatalf("recovered alive: %v", err)
	}
	if err := w.Fence(ctx, "one", 1, ""); !errors.Is(err, failure.Precondition) {
		t.Fatalf("fenced without evidence: %v", err)
	}
	if err := w.Fence(ctx, "three", 1, "word"); !errors.Is(err, failure.NotFound) {
		t.Fatal(err)
	}
	for range 2 {
		w.must(w.Fence(ctx, "one", 1, "word"))
	}
	if _, err := w.ask(1, request.Grant{Blocks: 1}); !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "--rejoin") {
		t.Fatalf("a fenced host asks: %v", err)
	}
	got, err := w.Recover(ctx, "one", false)
	want := []master.Recovered{{Number: 1, Name: "vol", Source: master.FromMetadata}, {Number: 2, Name: "coming", Source: master.FromStored}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	runs := []layout.MappingRun{{Virtual: 0, Physical: 1, Length: 1}, {Virtual: 4, Physical: 2, Length: 2}}
	if diff := cmp.Diff(runs, w.stored(1).Runs); diff != "" || w.volume(1).State != layout.Offline || len(w.stored(2).Runs) != 0 {
		t.Error(diff)
	}
	m, _ := w.readMap()
	if free := owned(m, layout.Free, 0).Blocks(); free != blocks-1-3 {
		t.Errorf("%d blocks are free", free)
	}

	// Should the host live, it cannot go on.
	dev := w.disk(layout.Host.Name(id(1)))
	header, stamp, err := layout.ReadHost(dev, clusterID, id(1))
	w.must(err)
	stamp.Epoch, stamp.Generation = 1, stamp.Generation-1
	if _, err := layout.CommitHost(dev, clusterID, id(1), stamp, 1, header); !errors.Is(err, layout.ErrStale) || !strings.Contains(failure.HintOf(err), "--rejoin") {
		t.Errorf("the host goes on: %v", err)
	}
	if again, err := w.Recover(ctx, "one", false); err != nil || len(again) != 0 {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := w.Join(ctx, master.Newcomer{UUID: id(1), Name: "one"}); !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "--rejoin one") {
		t.Errorf("joined as if new: %v", err)
	}
	if number, err := w.Join(ctx, master.Newcomer{UUID: id(1), Name: "one", Rejoin: true, Metadata: layout.MinWindow}); err != nil || number != 3 {
		t.Errorf("%d, %v", number, err)
	}
	if err := w.RemoveHost(ctx, "one"); !errors.Is(err, failure.Conflict) || failure.HintOf(err) == "" {
		t.Errorf("a member removed: %v", err)
	}
}

// Damaged metadata change nothing, until a repair is asked for.
func TestRecoverDamaged(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		spoil func(w *world)
		tool  func(in, out string) error
		want  []master.Recovered
		runs  []layout.MappingRun
	}{
		"thin_repair fails": {
			func(w *world) { w.rot(1) }, func(string, string) error { return errors.New("no") },
			[]master.Recovered{{1, "vol", master.FromStored, true}, {2, "coming", master.FromStored, true}},
			[]layout.MappingRun{{Physical: 1, Length: 1}},
		},
		"thin_repair helps": {
			func(w *world) { w.rot(1) },
			func(in, out string) error {
				b, err := os.ReadFile(in)
				if err == nil && !slices.Equal(b[:4096], make([]byte, 4096)) {
					err = errors.New("these are not the damaged metadata")
				}
				whole := dead(t)
				from, header := whole.active(1)
				image := make([]byte, header.Windows[0].Length)
				for at := 0; at < len(image); at += 4096 {
					copy(image[at:], read(whole, from, int64(at)))
				}
				return errors.Join(err, os.WriteFile(out, image, 0o600))
			},
			[]master.Recovered{{1, "vol", master.FromRepair, true}, {2, "coming", master.FromStored, true}},
			[]layout.MappingRun{{Physical: 1, Length: 1}, {Virtual: 4, Physical: 2, Length: 2}},
		},
		"the real thin_repair": {
			// A bitmap of the data space map, which is made anew from the mappings.
			func(w *world) {
				from, _ := w.active(1)
				root := int64(binary.LittleEndian.Uint64(read(w, from, 0)[64+16:])) // of its tree, struct thin_disk_superblock
				w.g.Disk(layout.Host.Name(id(1))).Rot(from.at + 4096*root + 100)
			},
			func(in, out string) error {
				_, err := command.System{}.Run(context.Background(), command.Cmd{Name: "thin_repair", Args: []string{"-i", in, "-o", out}})
				return err
			},
			[]master.Recovered{{1, "vol", master.FromRepair, true}, {2, "coming", master.FromStored, true}},
			[]layout.MappingRun{{Physical: 1, Length: 1}, {Virtual: 4, Physical: 2, Length: 2}},
		},
		"the header": {
			func(w *world) { w.g.Disk(layout.Host.Name(id(1))).Rot(8<<10 + 10) }, nil,
			[]master.Recovered{{1, "vol", master.FromStored, true}, {2, "coming", master.FromStored, true}},
			[]layout.MappingRun{{Physical: 1, Length: 1}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := dead(t)
			w.must(w.Fence(ctx, "one", 0, "word"))
			c.spoil(w)
			w.Run = repairer(c.tool)
			before, _ := w.readMap()
			_, err := w.Recover(ctx, "one", false)
			if !errors.Is(err, failure.Problems) || !strings.Contains(failure.HintOf(err), "--repair one") {
				t.Fatalf("%v, hint %q", err, failure.HintOf(err))
			}
			if after, _ := w.readMap(); !cmp.Equal(before, after) {
				t.Fatal("the map changed")
			}
			got, err := w.Recover(ctx, "one", true)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Fatalf("%v\n%s", err, diff)
			}
			if diff := cmp.Diff(c.runs, w.stored(1).Runs); diff != "" || w.volume(1).State != layout.Suspect {
				t.Error(diff)
			}
			left, err := os.ReadDir(w.Layout.State() + "/thin")
			if err != nil || len(left) != 1 {
				t.Errorf("%v, %v", left, err)
			}
			if _, err := w.ask(2, request.BeginAttach{Volume: 1}); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "--suspect vol") {
				t.Error(err)
			}
			w.done(2, request.BeginAttach{Volume: 1, Suspect: true})
		})
	}
}

// repairer poses as thin_repair.
type repairer func(in, out string) error

func (r repairer) Run(_ context.Context, cmd command.Cmd) (command.Result, error) {
	if cmd.Name != "thin_repair" || len(cmd.Args) != 4 || cmd.Args[0] != "-i" || cmd.Args[2] != "-o" {
		return command.Result{}, errors.New("not as thin_repair wants it: " + cmd.String())
	}
	return command.Result{}, r(cmd.Args[1], cmd.Args[3])
}

// read is a block of metadata.
func read(w *world, from section, at int64) []byte {
	w.t.Helper()
	b := directio.Buffer(4096)
	if _, err := from.ReadAt(b, at); err != nil {
		w.t.Fatal(err)
	}
	return b
}
