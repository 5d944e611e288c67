// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/stream"
)

// fakeHost keeps volumes as files. Before a step it does what stop says.
type fakeHost struct {
	dir     string
	volumes map[string]stream.Found
	at      map[string]bool // attached
	asked   func()          // what the master was asked for, which it does with the next step
	looked  func()          // what happens before somebody looks; nil is nothing
	free    uint64
	log     []string
	stop    func(step string) error
}

func newHost(t *testing.T) *fakeHost {
	return &fakeHost{dir: t.TempDir(), volumes: map[string]stream.Found{}, at: map[string]bool{}, free: 64 << 20}
}

func (h *fakeHost) step(name string) error {
	_ = h.Settle(context.Background())
	h.log = append(h.log, name)
	if h.stop != nil {
		return h.stop(name)
	}
	return nil
}

func (h *fakeHost) path(name string) string { return filepath.Join(h.dir, name) }

func (h *fakeHost) Create(_ context.Context, id uuid.UUID, name string, bytes uint64) error {
	if err := h.step("create"); err != nil {
		return err
	}
	if _, taken := h.volumes[name]; taken {
		return failure.New(failure.Conflict, "its name is taken")
	}
	h.make(id, name)
	return os.Truncate(h.path(name), int64(bytes))
}

func (h *fakeHost) make(id uuid.UUID, name string) {
	h.volumes[name] = stream.Found{ID: id, Generation: 1}
	if err := os.WriteFile(h.path(name), nil, 0o600); err != nil {
		panic(err)
	}
}

func (h *fakeHost) rise(name string) {
	v := h.volumes[name]
	v.Generation++
	h.volumes[name] = v
}

func (h *fakeHost) Settle(context.Context) error {
	if h.asked != nil {
		h.asked()
		h.asked = nil
	}
	return nil
}

func (h *fakeHost) Attach(_ context.Context, name string) (string, error) {
	if err := h.step("attach"); err != nil {
		return "", err
	}
	h.at[name] = true
	h.rise(name)
	return h.path(name), nil
}

func (h *fakeHost) Detach(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := h.step("detach"); err != nil {
		return err
	}
	if h.at[name] {
		h.at[name] = false
		h.rise(name)
	}
	return nil
}

func (h *fakeHost) Delete(_ context.Context, name string) error {
	if h.at[name] {
		return errors.New("it is attached")
	}
	delete(h.volumes, name)
	return errors.Join(h.step("delete"), os.Remove(h.path(name)))
}

func (h *fakeHost) Reserve(_ context.Context, bytes uint64) error {
	if bytes > h.free {
		return failure.New(failure.NoSpace, "%d of %d bytes", h.free, bytes)
	}
	return h.step("reserve")
}

func (h *fakeHost) Find(_ context.Context, name string) (stream.Found, bool, error) {
	if h.looked != nil {
		h.looked()
	}
	v, ok := h.volumes[name]
	return v, ok, nil
}

func importer(t *testing.T) (stream.Importer, *fakeHost) {
	h := newHost(t)
	return stream.Importer{Host: h, Cluster: "san", Notes: filepath.Join(t.TempDir(), "thin", "imports"), Locks: filepath.Join(t.TempDir(), "locks")}, h
}

func notes(t *testing.T, i stream.Importer) int {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(i.Notes, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestImport(t *testing.T) {
	c, data := world(t)
	s, err := c.Export(t.Context(), record.Name, nil)
	if err != nil {
		t.Fatal(err)
	}
	i, h := importer(t)
	fill := func(to io.WriterAt) error {
		return c.Read(t.Context(), s, func(contents stream.Contents) error { return contents.Copy(t.Context(), to, nil) })
	}
	if err := i.Import(t.Context(), stream.Intake{Name: "new", Size: record.Size, Need: 28 * blockSize, Fill: fill}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(h.path("new"))
	if err != nil || !bytes.Equal(got, disk(data)) {
		t.Errorf("%v; equal: %v", err, bytes.Equal(got, disk(data)))
	}
	if diff := cmp.Diff([]string{"reserve", "create", "attach", "detach"}, h.log); diff != "" || notes(t, i) != 0 {
		t.Errorf("%d notes; %s", notes(t, i), diff)
	}
	// A second one of this name is refused, and the first stays.
	err = i.Import(t.Context(), stream.Intake{Name: "new", Size: record.Size, Fill: fill})
	if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "--name") || h.volumes["new"].ID == uuid.Nil {
		t.Errorf("%v (%s)", err, failure.HintOf(err))
	}
	if err := i.Import(t.Context(), stream.Intake{Name: "big", Size: record.Size, Need: 65 << 20, Fill: fill}); !errors.Is(err, failure.NoSpace) || len(h.volumes) != 1 || notes(t, i) != 0 {
		t.Errorf("no room: %v; %v", err, h.volumes)
	}
}

// A volume that moved on while it was read is not imported, nor is half of one that
// was stopped.
func TestImportLeavesNothing(t *testing.T) {
	c, _ := world(t)
	s, err := c.Export(t.Context(), record.Name, nil)
	if err != nil {
		t.Fatal(err)
	}
	i, h := importer(t)
	ctx, cancel := context.WithCancel(t.Context())
	err = i.Import(ctx, stream.Intake{Name: "new", Size: record.Size, Fill: func(to io.WriterAt) error {
		return c.Read(ctx, s, func(contents stream.Contents) error {
			commit(t, c, attach)
			cancel()
			return contents.Copy(t.Context(), to, nil)
		})
	}})
	if err == nil || len(h.volumes) != 0 || notes(t, i) != 0 {
		t.Errorf("%v; %v, %d notes", err, h.volumes, notes(t, i))
	}
	for _, step := range []string{"create", "attach"} {
		i, h := importer(t)
		h.stop = func(s string) error {
			if s == step {
				return errors.New("no luck")
			}
			return nil
		}
		err := i.Import(t.Context(), stream.Intake{Name: "new", Size: record.Size, Fill: func(io.WriterAt) error { return nil }})
		if err == nil || !strings.Contains(err.Error(), "no luck") || len(h.volumes) != 0 || notes(t, i) != 0 {
			t.Errorf("%s: %v; %v, %d notes", step, err, h.volumes, notes(t, i))
		}
	}
}

// What a crash left is deleted by the next import of the name; a volume that
// somebody made by that name since is not.
func TestImportAfterACrash(t *testing.T) {
	for _, step := range []string{"create", "attach"} {
		i, h := importer(t)
		h.stop = func(s string) error {
			if s == step {
				panic("power")
			}
			return nil
		}
		fill := func(to io.WriterAt) error { _, err := to.WriteAt([]byte{1}, 0); return err }
		func() {
			defer func() { _ = recover() }()
			_ = i.Import(t.Context(), stream.Intake{Name: "new", Size: 4096, Fill: fill})
			t.Error("it went on")
		}()
		if notes(t, i) != 1 {
			t.Fatalf("%s: %d notes", step, notes(t, i))
		}
		h.stop = nil
		before := h.volumes["new"]
		if err := i.Import(t.Context(), stream.Intake{Name: "new", Size: 4096, Fill: fill}); err != nil {
			t.Fatal(err)
		}
		if now := h.volumes["new"]; now.ID == before.ID || now.ID == uuid.Nil || notes(t, i) != 0 {
			t.Errorf("%s: %v after %v, %d notes", step, now, before, notes(t, i))
		}
	}
	// A volume that is complete is nobody's leftover, though it is still attached.
	i, h := importer(t)
	h.stop = func(s string) error {
		if s == "detach" {
			return errors.New("no luck")
		}
		return nil
	}
	whole := stream.Intake{Name: "new", Size: 4096, Source: "the one", Fill: func(io.WriterAt) error { return nil }}
	err := i.Import(t.Context(), whole)
	if err == nil || !strings.Contains(failure.HintOf(err), "thin detach new") || h.volumes["new"].ID == uuid.Nil || !h.at["new"] {
		t.Errorf("%v (%s), %v", err, failure.HintOf(err), h.volumes)
	}
	other := whole
	other.Source = "another"
	if err := i.Import(t.Context(), other); !errors.Is(err, failure.Conflict) || !h.at["new"] {
		t.Errorf("another import of the name: %v", err)
	}

	i, h = importer(t)
	if err := os.MkdirAll(i.Notes, 0o700); err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(i.Notes, "new.json")
	write := func(text string) {
		if err := os.WriteFile(note, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"volume":"` + cluster.String() + `"}`)
	h.make(volume, "new")
	err = i.Import(t.Context(), stream.Intake{Name: "new", Size: 4096, Fill: func(io.WriterAt) error { return nil }})
	if !errors.Is(err, failure.Conflict) || h.volumes["new"].ID != volume {
		t.Errorf("another's volume: %v, %v", err, h.volumes)
	}
	write("{")
	err = i.Import(t.Context(), stream.Intake{Name: "new", Size: 4096, Fill: func(io.WriterAt) error { return nil }})
	if !errors.Is(err, failure.Problems) || !strings.Contains(failure.HintOf(err), note) || h.volumes["new"].ID != volume {
		t.Errorf("a torn note: %v (%s)", err, failure.HintOf(err))
	}
}

// A volume that the master makes after the crash, since it was asked for before, is
// the import's all the same.
func TestImportAfterACrashWhileItAsks(t *testing.T) {
	i, h := importer(t)
	h.stop = func(s string) error {
		if s == "create" {
			panic("power")
		}
		return nil
	}
	in := stream.Intake{Name: "new", Size: 4096, Fill: func(io.WriterAt) error { return nil }}
	crashes(t, i, in)
	text, err := os.ReadFile(filepath.Join(i.Notes, "new.json"))
	if err != nil {
		t.Fatal(err)
	}
	var note struct{ Volume uuid.UUID }
	if err := json.Unmarshal(text, &note); err != nil {
		t.Fatal(err)
	}
	h.stop, h.asked = nil, func() { h.make(note.Volume, "new") }
	h.log = nil
	if err := i.Import(t.Context(), in); err != nil || h.volumes["new"].ID == note.Volume || notes(t, i) != 0 {
		t.Errorf("%v: %v, %d notes, %v", err, h.volumes, notes(t, i), h.log)
	}
}

// crashes has an import end by a panic of the host.
func crashes(t *testing.T, i stream.Importer, in stream.Intake) {
	t.Helper()
	defer func() { _ = recover() }()
	err := i.Import(t.Context(), in)
	t.Errorf("it went on: %v", err)
}

// A move that is killed once the volume is whole is ended by the same move, in which
// nothing is filled again; the original goes when the volume is detached, and not
// before.
func TestMoveAfterACrash(t *testing.T) {
	for _, step := range []string{"detach", "after", "moved"} {
		i, h := importer(t)
		fills, original := 0, true
		h.stop = func(s string) error {
			if s == step {
				panic("power")
			}
			return nil
		}
		in := stream.Intake{Name: "new", Size: 4096, Source: "the one", Fill: func(io.WriterAt) error { fills++; return nil }}
		in.After = func(context.Context) error {
			if h.at["new"] {
				t.Errorf("%s: the original goes while the copy is attached", step)
			}
			if err := h.step("after"); err != nil {
				return err
			}
			original = false
			return h.step("moved")
		}
		crashes(t, i, in)
		if whole, err := i.Whole("new", "the one"); !whole || err != nil {
			t.Errorf("%s: whole: %v, %v", step, whole, err)
		}
		if whole, err := i.Whole("new", "another"); whole || err != nil {
			t.Errorf("%s: of another source whole: %v, %v", step, whole, err)
		}
		h.stop = nil
		id := h.volumes["new"].ID
		if err := i.Import(t.Context(), in); err != nil {
			t.Fatalf("%s: %v", step, err)
		}
		if fills != 1 || original || h.at["new"] || h.volumes["new"].ID != id || notes(t, i) != 0 {
			t.Errorf("%s: %d fills, original %v, attached %v, %v, %d notes", step, fills, original, h.at["new"], h.volumes, notes(t, i))
		}
	}
}

// What somebody has attached since is left to him, and where the volume is gone the
// original stays.
func TestMoveOfWhatSomebodyUsed(t *testing.T) {
	start := func(t *testing.T) (stream.Importer, *fakeHost, stream.Intake, *int) {
		i, h := importer(t)
		h.stop = func(s string) error {
			if s == "after" {
				panic("power")
			}
			return nil
		}
		afters := 0
		in := stream.Intake{Name: "new", Size: 4096, Source: "the one", Fill: func(io.WriterAt) error { return nil }}
		in.After = func(context.Context) error { afters++; return h.step("after") }
		crashes(t, i, in)
		h.stop = nil
		return i, h, in, &afters
	}
	i, h, in, afters := start(t)
	if _, err := h.Attach(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	if err := i.Import(t.Context(), in); err != nil || *afters != 2 || !h.at["new"] {
		t.Errorf("attached since: %v, %d times, attached %v", err, *afters, h.at["new"])
	}
	i, h, in, afters = start(t)
	if err := h.Delete(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	in.Fill = func(io.WriterAt) error { return errors.New("no luck") }
	if err := i.Import(t.Context(), in); err == nil || *afters != 1 || len(h.volumes) != 0 {
		t.Errorf("deleted since: %v, %d times, %v", err, *afters, h.volumes)
	}
}

// Nor does the original go if somebody deletes the copy the moment that it is whole.
func TestMoveOfWhatSomebodyDeletes(t *testing.T) {
	i, h := importer(t)
	in := stream.Intake{Name: "new", Size: 4096, Source: "the one", Fill: func(io.WriterAt) error { return nil }}
	in.After = func(context.Context) error { t.Error("the original goes"); return nil }
	h.looked = func() {
		if whole, err := i.Whole("new", "the one"); err == nil && whole {
			delete(h.volumes, "new")
		}
	}
	if err := i.Import(t.Context(), in); !errors.Is(err, failure.Conflict) {
		t.Error(err)
	}
}

// Two imports of one name at a time would take each other's volume away.
func TestImportOneAtATime(t *testing.T) {
	i, h := importer(t)
	in := stream.Intake{Name: "new", Size: 4096}
	in.Fill = func(io.WriterAt) error {
		second := in
		second.Fill = func(io.WriterAt) error { return nil }
		if err := i.Import(t.Context(), second); !errors.Is(err, failure.Temporary) || failure.HintOf(err) == "" {
			t.Errorf("the second: %v", err)
		}
		return nil
	}
	if err := i.Import(t.Context(), in); err != nil || h.volumes["new"].ID == uuid.Nil {
		t.Errorf("the first: %v, %v", err, h.volumes)
	}
}
