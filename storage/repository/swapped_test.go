// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// swap puts two documents of repository a into each other's place, as whoever restores
// files by hand may.
func (w *world) swap(kind format.Kind, one, other string) {
	w.Helper()
	p := w.place("a")
	first, err := p.Read(w.Context(), kind, one)
	must(w, err)
	second, err := p.Read(w.Context(), kind, other)
	must(w, err)
	always := func() error { return nil }
	must(w, p.Write(w.Context(), kind, one, second, always))
	must(w, p.Write(w.Context(), kind, other, first, always))
}

// Each of the documents is whole, and would have an image read the data of another one.
func TestADocumentInTheWrongPlaceIsDamaged(t *testing.T) {
	eachFormat(t, func(t *testing.T, name string) {
		for _, kind := range []format.Kind{format.Image, format.Volume, format.Pin} {
			t.Run(string(kind), func(t *testing.T) {
				w := newWorld(t, name)
				s, ctx := w.on("h1"), t.Context()
				disk, base := w.diskOnBase()
				one, other := disk, base
				switch kind {
				case format.Volume:
					place := w.place("a")
					ids, err := place.List(ctx, format.Volume)
					must(t, err)
					one, other = ids[0], ids[1]
				case format.Pin:
					for _, id := range []string{disk, base} {
						_, err := s.PrepareImage(ctx, "a", id, repository.Preparing{Holder: id, Write: id == disk})
						must(t, err)
					}
				}
				w.swap(kind, one, other)
				_, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "other"})
				refused(t, err, repository.ErrDamaged, "it is that of")
				report, err := s.CheckStorageRepository(ctx, "a")
				must(t, err)
				if len(report.Problems) < 2 {
					t.Errorf("%+v", report)
				}
				for _, fix := range report.Fixes {
					if !fix.ByName {
						t.Errorf("%+v", fix)
					}
				}
				w.swap(kind, one, other) // the way back
				if kind == format.Pin {
					for _, id := range []string{disk, base} {
						must(t, s.ReleaseImage(ctx, "a", id, id))
					}
				}
				w.holds("a", disk, w.path("now.raw"))
				w.holds("a", base, w.path("before.raw"))
			})
		}
	})
}
