// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format/clvm"
)

// wreck spoils both copies of a document in the volume of documents of repository a.
func (w *world) wreck(kind byte, id string) {
	w.Helper()
	const block = 4096
	path := w.path("groups", "a", "dh_documents.img")
	all, err := os.ReadFile(path)
	must(w, err)
	u := uuid.MustParse(id)
	for at := 0; at < len(all); at += 2 * block {
		if slices.ContainsFunc([]int{at, at + block}, func(i int) bool { return all[i+13] == kind && uuid.UUID(all[i+32:i+48]) == u }) {
			all[at+20]++
			all[at+block+20]++
			must(w, os.WriteFile(path, all, 0o600))
			return
		}
	}
	w.Fatalf("no document %q %s", kind, id)
}

// A document that nobody can tell any more hides nothing else, and nothing is cleaned as
// long as it may be what needs it.
func TestAWreckIsPutAside(t *testing.T) {
	for name, c := range map[string]struct {
		kind byte
		of   func(w *world, disk, base string) string
		gone bool // the base is, with its document
	}{
		"of an image": {'i', func(_ *world, _, base string) string { return base }, true},
		"of a volume": {'v', func(w *world, _, base string) string {
			p, err := w.on("h1").PrepareImage(w.Context(), "a", base, repository.Preparing{Holder: "look"})
			must(w, err)
			must(w, w.on("h1").ReleaseImage(w.Context(), "a", base, "look"))
			id, _, _ := strings.Cut(p.Path[strings.LastIndex(p.Path, "/")+1:], ".")
			return id
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, clvm.Name)
			s, ctx := w.on("h1"), t.Context()
			disk, base := w.diskOnBase()
			other, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
			must(t, err)
			w.wreck(c.kind, c.of(w, disk, base))

			page, err := s.ListImages(ctx, "a", repository.Filter{})
			must(t, err)
			left := 3
			if c.gone {
				left = 2
			}
			if len(page.Images) != left || !slices.ContainsFunc(page.Images, func(i repository.Info) bool { return i.ID == other }) {
				t.Errorf("%+v", page)
			}
			report, err := s.CheckStorageRepository(ctx, "a")
			must(t, err)
			if !slices.ContainsFunc(report.Problems, func(p string) bool { return strings.Contains(p, "is damaged in both copies") }) {
				t.Errorf("%q", report.Problems)
			}
			data := w.logical("a")
			fix := w.byName("a", repository.Mend)
			refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), failure.Usage, "diskhook repo fix a FIX")
			must(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: fix.Images[0]}))
			refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: fix.Images[0]}), repository.ErrStaleFix)

			// The repository works, and all data is kept until it is said to be lost.
			_, err = s.CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
			must(t, err)
			if c.gone {
				w.holds("a", disk, w.path("now.raw"))
			}
			forget := w.byName("a", repository.Clean)
			for _, name := range data {
				if !slices.Contains(w.logical("a"), name) {
					t.Errorf("%s was cleaned", name)
				}
			}
			must(t, s.FixStorageRepository(ctx, "a", forget, repository.Options{Confirm: forget.Images[0]}))
			for _, image := range []string{disk, base} {
				if err := s.RemoveImage(ctx, "a", image, repository.Options{}); err != nil && !c.gone {
					t.Error(err)
				}
			}
			w.settled()
			if now := w.logical("a"); len(now) != 2 {
				t.Errorf("left: %q", now)
			}
		})
	}
}
