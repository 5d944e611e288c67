// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"testing"

	"diskhook/storage/repository"
)

// What is previewed is what is prepared then, and nothing is changed by it. The
// version tells content that may be another from content that was moved.
func TestPreview(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		preview := func(id string, p repository.Preparing) repository.Preview {
			t.Helper()
			at, err := s.PreviewImage(ctx, "a", id, p)
			must(t, err)
			return at
		}
		me := repository.Preparing{Holder: "me", Write: true}
		before := preview(disk, me)
		if before.Held || before.Kind != repository.Disk || preview(disk, repository.Preparing{}).Version != before.Version {
			t.Errorf("%+v", before)
		}
		at, err := s.PrepareImage(ctx, "a", disk, me)
		must(t, err)
		if at.Path != before.Path || at.Format != before.Format || len(at.Layers) != len(before.Layers) || at.Version == before.Version {
			t.Errorf("%+v is not %+v", at, before)
		}
		if held := preview(disk, me); !held.Held || held.Version != at.Version {
			t.Errorf("%+v", held)
		}
		_, err = s.PreviewImage(ctx, "a", disk, repository.Preparing{Holder: "other"})
		refused(t, err, repository.ErrInUse, "by me on host h1")
		preview(disk, repository.Preparing{}) // wherever it is, whoever uses it
		must(t, s.ReleaseImage(ctx, "a", disk, "me"))

		_, err = s.PreviewImage(ctx, "a", base, me)
		refused(t, err, repository.ErrNotDisk)
		_, err = s.PreviewImage(ctx, "a", disk, repository.Preparing{Holder: "no good"})
		refused(t, err, "holder")
		_, err = s.PreviewImage(ctx, "a/../b", disk, me)
		refused(t, err, "repository")

		// A copy for reading is of the same content before and after.
		reading := preview(disk, repository.Preparing{}).Version
		read, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "copy"})
		must(t, err)
		must(t, s.ReleaseImage(ctx, "a", disk, "copy"))
		if read.Version != reading || preview(disk, repository.Preparing{}).Version != reading {
			t.Errorf("%s is not %s", read.Version, reading)
		}
		if got := preview(base, repository.Preparing{}).Version; got != preview(base, repository.Preparing{Holder: "copy"}).Version || got == "" {
			t.Errorf("%q", got)
		}
	})
}
