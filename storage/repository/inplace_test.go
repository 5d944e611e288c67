// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"slices"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// silentOn is a host that takes the locks whose names begin so from one that may wake up.
func (w *world) silentOn(hostID, locks string) *repository.Service {
	thief := &faulty{silent: locks, shared: true}
	thief.takenOver.Store(true)
	s := w.on(hostID)
	s.Formats = []format.Format{thief}
	return s
}

// moved fails unless none of the volumes that were in repository a are there any more but
// for those that are kept.
func (w *world) moved(before []string, kept int) {
	w.Helper()
	after := w.files("a")
	old := slices.DeleteFunc(slices.Clone(after), func(name string) bool { return !slices.Contains(before, name) })
	if len(after) != kept+1 || len(old) != kept {
		w.Errorf("%v, then %v", before, after)
	}
}

// A merge changes volumes in place. Who lost his lock meanwhile may go on with that, so
// nobody uses them any more: also if the lock of the work had somebody else in between, who
// began nothing, so that only the volume's tells of it.
func TestATakenOverMergeBecomesACopy(t *testing.T) {
	for _, silent := range []string{"", "work-", "volume-"} {
		t.Run("lock "+silent, func(t *testing.T) {
			w := newWorld(t, "localfs-1.0")
			s, ctx := w.on("h1"), t.Context()
			disk, base := w.diskOnBase()
			must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
			report, err := s.CheckStorageRepository(ctx, "a")
			must(t, err)
			must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))
			before := w.files("a")
			must(t, w.silentOn("h2", silent).Run(ctx, "a", disk))
			w.holds("a", disk, w.path("now.raw"))
			w.repair("a")
			w.moved(before, 0)
		})
	}
}

// So does a disk that is made larger where two hosts can write it at once. Until then nobody
// gets to use it.
func TestATakenOverResizeBecomesACopy(t *testing.T) {
	for _, silent := range []string{"work-", "volume-"} {
		t.Run("lock "+silent, func(t *testing.T) {
			w := newWorld(t, "localfs-1.0")
			ctx := t.Context()
			disk, _ := w.diskOnBase()
			second := w.silentOn("h2", silent)
			must(t, w.on("h1").ResizeVirtualDisk(ctx, "a", disk, 8*mib, repository.Options{NoAutoFix: true}))
			_, err := second.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
			refused(t, err, repository.ErrBusy, "its resize is not done", "diskhook image resume --wait a/"+disk)
			before := w.files("a")
			must(t, second.Run(ctx, "a", disk))
			now := w.path("now.raw")
			w.tool("truncate", "-s", "8M", now)
			w.holds("a", disk, now)
			info, err := second.GetImage(ctx, "a", disk)
			if err != nil || info.Size != 8*mib {
				t.Errorf("%+v: %v", info, err)
			}
			w.settled()
			w.moved(before, 1)
		})
	}
}

// Where nobody else can write a volume, whoever wakes up, it grows where it is.
func TestAResizeThatIsAloneStaysInPlace(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	must(t, w.on("h1").ResizeVirtualDisk(ctx, "a", disk, 8*mib, repository.Options{NoAutoFix: true}))
	before := w.files("a")
	thief := &faulty{}
	thief.takenOver.Store(true)
	s := w.on("h2")
	s.Formats = []format.Format{thief}
	must(t, s.Run(ctx, "a", disk))
	if after := w.files("a"); !slices.Equal(before, after) {
		t.Errorf("%v, then %v", before, after)
	}
}
