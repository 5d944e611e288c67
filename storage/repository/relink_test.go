// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"os"
	"testing"

	"diskhook/storage/failpoint"
	"diskhook/storage/repository"
)

// A merge that stopped between the header of a volume and its document, of an image that
// is removed then, leaves those that lie on it as they were.
func TestRemovalInTheMiddleOfAMerge(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		middle, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(t, err)
		w.write("a", disk, w.path("now.raw"), 3, "3M", "64k")
		must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
		report, err := s.CheckStorageRepository(ctx, "a")
		if err != nil || len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Merge {
			t.Fatalf("%+v: %v", report, err)
		}
		t.Setenv("DISKHOOK_FAILPOINT", "repository.merge.header=error")
		refused(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{}), failpoint.ErrInjected)
		must(t, os.Unsetenv("DISKHOOK_FAILPOINT"))
		must(t, s.RemoveImage(ctx, "a", middle, repository.Options{}))
		w.holds("a", disk, w.path("now.raw"))
		w.repair("a")
		w.holds("a", disk, w.path("now.raw"))
	})
}
