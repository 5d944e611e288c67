// SPDX-License-Identifier: Apache-2.0

package clvm_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

// store writes so many documents of volumes, which say what they are.
func store(t testing.TB, p format.Place, n int) (ids []string) {
	t.Helper()
	for range n {
		id := uuid.NewString()
		must(t, p.Write(t.Context(), format.Volume, id, []byte("of "+id), pass))
		ids = append(ids, id)
	}
	return ids
}

// sees fails unless exactly these documents are there.
func sees(t testing.TB, p format.Place, ids []string) {
	t.Helper()
	listed, err := p.List(t.Context(), format.Volume)
	must(t, err)
	if ids = slices.Sorted(slices.Values(ids)); !slices.Equal(listed, ids) {
		t.Errorf("%d documents, not %d", len(listed), len(ids))
	}
	for _, id := range ids {
		if got, err := p.Read(t.Context(), format.Volume, id); err != nil || string(got) != "of "+id {
			t.Fatalf("%s: %q: %v", id, got, err)
		}
	}
}

// added are the volumes of documents but for the first.
func (s site) added() (names []string) {
	s.Helper()
	g, err := lvmtest.Load(s.state())
	must(s, err)
	for name := range g.Volumes {
		if strings.HasPrefix(name, "dh_documents_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// said says whether the header has that, in its newest version or not.
func (s site) said(text string) bool {
	all, err := os.ReadFile(s.documents())
	must(s, err)
	return bytes.Contains(all[:8192], []byte(text))
}

// Where there is no slot left a volume is added, by whatever host, and all hosts have it, also
// those that had the repository open before.
func TestDocumentsGrow(t *testing.T) {
	for lockType, parameters := range map[string]map[string]string{"sanlock": shared, "": single} {
		t.Run("lock type "+lockType, func(t *testing.T) {
			ctx := t.Context()
			s := newSite(t, lockType)
			one, two := s.on("h1", 1), s.on("h2", 2)
			if lockType == "" {
				two = one // another process
			}
			must(t, one.Create(ctx, parameters))
			first, second := s.open(one, parameters), s.open(two, parameters)
			ids := store(t, first, 20)
			if len(s.added()) > 0 || !s.said(`"v":1`) || s.said(`"v":2`) {
				t.Errorf("it is of version 2 though nothing was added: %v", s.added())
			}
			sees(t, second, ids)
			ids = append(ids, store(t, first, 100)...) // of 64 slots
			if len(s.added()) == 0 || !s.said(`"v":2`) {
				t.Fatalf("nothing was added: %v", s.added())
			}
			sees(t, second, ids)
			ids = append(ids, store(t, second, 100)...)
			if len(s.added()) < 2 {
				t.Errorf("nothing more was added: %v", s.added())
			}
			sees(t, first, ids)

			// What is there is changed where it is, and removed, by any host.
			for _, p := range []format.Place{first, second} {
				must(t, p.Write(ctx, format.Volume, ids[0], []byte("of "+ids[0]), pass))
				must(t, p.Remove(ctx, format.Volume, ids[len(ids)-1], pass))
				ids = ids[:len(ids)-1]
				must(t, p.Write(ctx, format.Volume, ids[len(ids)-1], []byte("of "+ids[len(ids)-1]), pass))
			}
			sees(t, first, ids)
			third := s.open(two, parameters)
			sees(t, third, ids)
			if wrecks, err := third.Wrecks(ctx); err != nil || len(wrecks) > 0 {
				t.Errorf("%+v: %v", wrecks, err)
			}
			leaves(t, s, one, parameters)
		})
	}
}

// leaves wants nothing of the documents to stay active on a host that has left.
func leaves(t *testing.T, s site, f clvm.Format, parameters map[string]string) {
	t.Helper()
	p, err := f.Open(t.Context(), parameters)
	must(t, err)
	must(t, p.Leave(t.Context()))
	for _, name := range append(s.added(), "dh_documents") {
		if _, err := os.Stat(filepath.Join(f.Dev, vg, name)); !errors.Is(err, fs.ErrNotExist) && err != nil {
			t.Error(err)
		}
	}
}

// A host that may only read has what was added, too.
func TestAReaderFollows(t *testing.T) {
	s := newSite(t, "")
	must(t, s.on("h1", 0).Create(t.Context(), single))
	writer, reader := s.open(s.on("h1", 0), single), s.open(s.on("h2", 0), single)
	ids := store(t, writer, 150)
	sees(t, reader, ids)
	refused(t, reader.Write(t.Context(), format.Volume, ids[0], []byte("x"), pass), failure.Precondition, "h1 alone writes")
}

// What a host left that died while it added a volume is taken, or passed over while that
// host may have it.
func TestAHostDiesWhileItGrows(t *testing.T) {
	for name, c := range map[string]struct {
		on   map[string]bool
		tags []string
		want []string
	}{
		"begun":            {nil, []string{"DH_REPO:documents"}, []string{"dh_documents_1"}},
		"active elsewhere": {map[string]bool{"h2": true}, []string{"DH_REPO:documents"}, []string{"dh_documents_1", "dh_documents_2"}},
		"a stranger's":     {nil, nil, []string{"dh_documents_1", "dh_documents_2"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "sanlock")
			must(t, s.on("h1", 1).Create(t.Context(), shared))
			p := s.open(s.on("h1", 1), shared)
			junk := bytes.Repeat([]byte{0xAA}, 4<<20)
			file := filepath.Join(s.state(), "dh_documents_1.img")
			must(t, os.WriteFile(file, junk, 0o600))
			must(t, lvmtest.Change(s.state(), func(g *lvmtest.Group) {
				uuid := g.Volumes["dh_documents"].UUID
				g.Volumes["dh_documents_1"] = &lvmtest.Volume{UUID: "dhdhdh" + uuid[6:], Size: int64(len(junk)), Tags: c.tags, On: c.on}
			}))
			ids := store(t, p, 100)
			sees(t, s.open(s.on("h3", 3), shared), ids)
			if got := s.added(); !slices.Equal(got, c.want) {
				t.Errorf("%v, not %v", got, c.want)
			}
			if now, err := os.ReadFile(file); err != nil || bytes.Equal(now, junk) != (len(c.want) > 1) {
				t.Errorf("what was there was written, or not: %v", err)
			}
		})
	}
}

// A volume of documents that is not there is told of, and nothing of what was in it is said
// not to exist.
func TestAnAddedVolumeIsMissed(t *testing.T) {
	s := newSite(t, "sanlock")
	must(t, s.on("h1", 1).Create(t.Context(), shared))
	store(t, s.open(s.on("h1", 1), shared), 100)
	must(t, lvmtest.Change(s.state(), func(g *lvmtest.Group) {
		g.Volumes["away"] = g.Volumes["dh_documents_1"]
		delete(g.Volumes, "dh_documents_1")
	}))
	_, err := s.on("h2", 2).Open(t.Context(), shared)
	refused(t, err, failure.Problems, "dh_documents_1: it does not exist")
}

// There is an end to it: each volume costs whoever looks for a document.
func TestGrowthHasABound(t *testing.T) {
	s := newSite(t, "")
	must(t, lvmtest.Change(s.state(), func(g *lvmtest.Group) { g.Size = 1 << 30 }))
	f := s.on("h1", 0)
	f.Buckets = 1
	must(t, f.Create(t.Context(), single))
	p := s.open(f, single)
	for range 8 {
		must(t, clvm.Grow(t.Context(), p, pass))
	}
	refused(t, clvm.Grow(t.Context(), p, pass), failure.NoSpace, "8 volumes were added already", "another volume group")
	sees(t, s.open(f, single), store(t, p, 40))
	if added := s.added(); len(added) != 8 {
		t.Errorf("%v", added)
	}
}

// Who lost his locks, or does not wait any more, adds nothing that can be seen.
func TestGrowthAsksTheFence(t *testing.T) {
	s := newSite(t, "sanlock")
	must(t, s.on("h1", 1).Create(t.Context(), shared))
	p := s.open(s.on("h1", 1), shared)
	lost := errors.New("lost")
	if err := clvm.Grow(t.Context(), p, func() error { return lost }); !errors.Is(err, lost) || s.said(`"v":2`) {
		t.Errorf("%v", err)
	}
	must(t, clvm.Grow(t.Context(), p, pass))
	if got := s.added(); len(got) != 1 || !s.said(`"v":2`) {
		t.Errorf("%v", got)
	}
}
