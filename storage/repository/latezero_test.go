// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"bytes"
	"os"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// An image that was removed may be asked to be overwritten while its volume is merged with,
// and enlarged for, the disk on it: the disk's volume is overwritten then once the disk goes.
func TestWhatIsToBeOverwrittenSurvivesAMerge(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{})
	must(t, err)
	now := w.reference("now", 4*mib)
	w.write("a", disk, now, 1, "0", "3M")
	base, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(t, err)
	w.write("a", disk, now, 2, "1M", "64k") // less than is below it
	must(t, s.ResizeVirtualDisk(ctx, "a", disk, 8*mib, repository.Options{}))
	lower := w.volumesOf("a", disk)[1]
	kept := w.path("kept")
	must(t, os.Link(lower, kept))
	must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	if len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Merge {
		t.Fatalf("%+v", report)
	}
	must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))

	listings := 0
	merging := w.on("h2")
	merging.Formats = []format.Format{&listened{then: func() {
		if listings++; listings == 2 { // the merge has read its volumes, and has no lock of the repository
			must(t, s.RemoveImage(ctx, "a", base, repository.Options{PostZero: true}))
		}
	}}}
	must(t, merging.Run(ctx, "a", disk))
	if now := w.volumesOf("a", disk); len(now) != 1 || now[0] != lower {
		t.Fatalf("the disk has %q, not %s", now, lower)
	}
	must(t, s.RemoveImage(ctx, "a", disk, repository.Options{}))
	w.settled()
	data, err := os.ReadFile(kept)
	must(t, err)
	if len(bytes.Trim(data, "\x00")) > 0 {
		t.Error("what was to be overwritten was deleted as it was")
	}
}
