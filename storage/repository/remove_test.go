// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"testing"

	"diskhook/storage/repository"
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
