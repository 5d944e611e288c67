// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
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
	volumes map[string]uuid.UUID
	at      map[string]bool // attached
	free    uint64
	log     []string
	stop    func(step string) error
}

func newHost(t *testing.T) *fakeHost {
	return &fakeHost{dir: t.TempDir(), volumes: map[string]uuid.UUID{}, at: map[string]bool{}, free: 64 << 20}
}

func (h *fakeHost) step(name string) error {
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
	h.volumes[name] = id
	return errors.Join(os.WriteFile(h.path(name), nil, 0o600), os.Truncate(h.path(name), int64(bytes)))
}

func (h *fakeHost) Attach(_ context.Context, name string) (string, error) {
	if err := h.step("attach"); err != nil {
		return "", err
	}
	h.at[name] = true
	return h.path(name), nil
}

func (h *fakeHost) Detach(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	h.at[name] = false
	return h.step("detach")
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

func (h *fakeHost) Find(_ context.Context, name string) (uuid.UUID, bool, error) {
	id, ok := h.volumes[name]
	return id, ok, nil
}

func importer(t *testing.T) (stream.Importer, *fakeHost) {
	h := newHost(t)
	return stream.Importer{Host: h, Notes: filepath.Join(t.TempDir(), "thin", "imports")}, h
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
	if err := i.Import(t.Context(), "new", record.Size, 28*blockSize, fill); err != nil {
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
	err = i.Import(t.Context(), "new", record.Size, 0, fill)
	if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "--name") || h.volumes["new"] == uuid.Nil {
		t.Errorf("%v (%s)", err, failure.HintOf(err))
	}
	if err := i.Import(t.Context(), "big", record.Size, 65<<20, fill); !errors.Is(err, failure.NoSpace) || len(h.volumes) != 1 || notes(t, i) != 0 {
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
	err = i.Import(ctx, "new", record.Size, 0, func(to io.WriterAt) error {
		return c.Read(ctx, s, func(contents stream.Contents) error {
			commit(t, c, attach)
			cancel()
			return contents.Copy(t.Context(), to, nil)
		})
	})
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
		err := i.Import(t.Context(), "new", record.Size, 0, func(io.WriterAt) error { return nil })
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
			_ = i.Import(t.Context(), "new", 4096, 0, fill)
			t.Error("it went on")
		}()
		if notes(t, i) != 1 {
			t.Fatalf("%s: %d notes", step, notes(t, i))
		}
		h.stop = nil
		before := h.volumes["new"]
		if err := i.Import(t.Context(), "new", 4096, 0, fill); err != nil {
			t.Fatal(err)
		}
		if now := h.volumes["new"]; now == before || now == uuid.Nil || notes(t, i) != 0 {
			t.Errorf("%s: %s after %s, %d notes", step, now, before, notes(t, i))
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
	err := i.Import(t.Context(), "new", 4096, 0, func(io.WriterAt) error { return nil })
	if err == nil || !strings.Contains(failure.HintOf(err), "thin detach new") || h.volumes["new"] == uuid.Nil || notes(t, i) != 0 {
		t.Errorf("%v (%s), %d notes", err, failure.HintOf(err), notes(t, i))
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
	h.volumes["new"] = volume
	err = i.Import(t.Context(), "new", 4096, 0, func(io.WriterAt) error { return nil })
	if !errors.Is(err, failure.Conflict) || h.volumes["new"] != volume {
		t.Errorf("another's volume: %v, %v", err, h.volumes)
	}
	write("{")
	err = i.Import(t.Context(), "new", 4096, 0, func(io.WriterAt) error { return nil })
	if !errors.Is(err, failure.Problems) || !strings.Contains(failure.HintOf(err), note) || h.volumes["new"] != volume {
		t.Errorf("a torn note: %v (%s)", err, failure.HintOf(err))
	}
}
