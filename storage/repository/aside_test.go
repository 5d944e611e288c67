// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// place is repository a or b as the format has it.
func (w *world) place(repo string) format.Place {
	w.Helper()
	for _, f := range w.on("h1").Formats {
		if f.Name() == w.Format {
			p, err := f.Open(w.Context(), w.parameters(repo))
			must(w, err)
			w.Cleanup(func() { must(w, p.Close()) })
			return p
		}
	}
	w.Fatal(w.Format)
	return nil
}

// damage spoils an image's document, and returns what was there.
func (w *world) damage(repo, image string) []byte {
	w.Helper()
	return w.spoil(repo, format.Image, image)
}

// spoil is damage of a document of any kind.
func (w *world) spoil(repo string, kind format.Kind, id string) []byte {
	w.Helper()
	p := w.place(repo)
	was, err := p.Read(w.Context(), kind, id)
	must(w, err)
	must(w, p.Write(w.Context(), kind, id, slices.Concat(was[:40], []byte("?"), was[41:]), func() error { return nil }))
	return was
}

// byName is the one fix of a type that has to be confirmed; those that have not are done.
func (w *world) byName(repo string, wanted repository.FixType) repository.Fix {
	w.Helper()
	for range 12 {
		report, err := w.on("h1").CheckStorageRepository(w.Context(), repo)
		must(w, err)
		named := slices.DeleteFunc(slices.Clone(report.Fixes), func(f repository.Fix) bool { return !f.ByName || f.Type != wanted })
		if len(named) == 1 && !slices.ContainsFunc(report.Fixes, func(f repository.Fix) bool { return !f.ByName }) {
			return named[0]
		}
		i := slices.IndexFunc(report.Fixes, func(f repository.Fix) bool { return !f.ByName })
		if i < 0 {
			w.Fatalf("%+v", report)
		}
		must(w, w.on("h1").FixStorageRepository(w.Context(), repo, report.Fixes[i], repository.Options{}))
	}
	w.Fatal("fixes without end")
	return repository.Fix{}
}

func TestADamagedDocumentIsPutAside(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		_, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
		must(t, err)
		w.damage("a", base)
		fix := w.byName("a", repository.Mend)
		if len(fix.Images) != 1 || fix.Images[0] != base {
			t.Errorf("%+v", fix)
		}
		refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), failure.Usage, "diskhook repo fix a FIX")
		refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: disk}), failure.Usage)
		_, err = s.GetImage(ctx, "a", base)
		refused(t, err, repository.ErrDamaged, "diskhook repo check a")
		must(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: base}))
		refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: base}), repository.ErrStaleFix)
		_, err = s.GetImage(ctx, "a", base)
		refused(t, err, repository.ErrNoImage)

		// The repository works, and its data is left alone.
		w.holds("a", disk, w.path("now.raw"))
		snapshot, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(t, err)
		must(t, s.RemoveImage(ctx, "a", disk, repository.Options{}))
		must(t, s.RemoveImage(ctx, "a", snapshot, repository.Options{}))
		fix = w.byName("a", repository.Clean)
		if left := w.files("a"); len(left) != 1 {
			t.Fatalf("what the image may have needed was cleaned, or more is left: %v", left)
		}
		report, err := s.CheckStorageRepository(ctx, "a")
		must(t, err)
		if len(report.Problems) != 1 || !strings.Contains(report.Problems[0], base) {
			t.Errorf("%q", report.Problems)
		}

		// It comes back from elsewhere, and what was kept for it is not needed then.
		_, err = s.CopyImage(ctx, "a", base, "", nil, repository.Options{ImageHints: map[string]string{base: "b"}})
		must(t, err)
		w.holds("a", base, w.path("before.raw"))
		refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), failure.Usage)
		must(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: base}))
		w.settled()
		w.holds("a", base, w.path("before.raw"))
		if left := w.files("a"); len(left) != 1 {
			t.Errorf("left: %v", left)
		}
	})
}

// A document that was brought back is not put aside, nor what a guest uses forgotten.
func TestWhatIsNotLostIsNotGivenUp(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, _ := w.diskOnBase()
	_, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	must(t, err)
	was := w.damage("a", disk)
	fix := w.byName("a", repository.Mend)
	must(t, w.place("a").Write(ctx, format.Image, disk, was, func() error { return nil }))
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: disk}), repository.ErrStaleFix)

	w.damage("a", disk)
	must(t, s.FixStorageRepository(ctx, "a", w.byName("a", repository.Mend), repository.Options{Confirm: disk}))
	fix = w.byName("a", repository.Clean)
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: disk}), repository.ErrInUse, "vm")
	must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
	must(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{Confirm: disk}))
	w.settled()
	if left := w.files("a"); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}
