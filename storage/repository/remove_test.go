// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"strings"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

func TestARemovedSnapshotComesBackWhileItsDataIsThere(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		_, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
		must(t, err)
		must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
		must(t, s.RemoveImage(ctx, "a", base, repository.Options{})) // it is being removed
		_, err = s.GetImage(ctx, "a", base)
		refused(t, err, repository.ErrNoImage, "diskhook image list a")
		report, err := s.CheckStorageRepository(ctx, "a")
		must(t, err)
		volumes := len(w.files("a"))

		// Of a merge that was only planned nothing is left to do then.
		must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))
		id, err := s.CopyImage(ctx, "a", base, "", nil, repository.Options{})
		if err != nil || id != base {
			t.Fatalf("%s: %v", id, err)
		}
		if n := len(w.files("a")); n != volumes {
			t.Errorf("%d volumes instead of %d: it was copied", n, volumes)
		}
		must(t, s.Resume(ctx, "a"))
		w.repair("a")
		w.holds("a", base, w.path("before.raw"))
		w.holds("a", disk, w.path("now.raw"))
	})
}

// A merge changes volumes in place. Who lost his lock meanwhile may go on with that, so
// nobody uses them any more.
func TestATakenOverMergeBecomesACopy(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))
	before := w.files("a")
	thief := &faulty{}
	thief.takenOver.Store(true)
	second := w.on("h2")
	second.Formats = []format.Format{thief}
	must(t, second.Run(ctx, "a", disk))
	w.holds("a", disk, w.path("now.raw"))
	w.repair("a")
	after := w.files("a")
	if len(after) != 1 || strings.Contains(strings.Join(before, " "), after[0]) {
		t.Errorf("%v, then %v", before, after)
	}
}
