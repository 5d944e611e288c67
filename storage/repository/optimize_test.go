// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// degraded is a snapshot for performance in repository a that consists of two volumes,
// and the fix for that. What it holds is in the file now.raw.
func (w *world) degraded() (id string, fix repository.Fix) {
	w.Helper()
	s, ctx := w.on("h1"), w.Context()
	fast := repository.Options{Strategy: repository.Performance}
	disk, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, fast)
	must(w, err)
	now := w.reference("now", 4*mib)
	w.write("a", disk, now, 1, "1M", "1M")
	_, err = s.CreateSnapshot(ctx, "a", disk, nil, fast)
	must(w, err)
	w.write("a", disk, now, 2, "2M", "64k")
	id, err = s.CreateSnapshot(ctx, "a", disk, nil, fast)
	must(w, err)
	must(w, s.RemoveImage(ctx, "a", disk, repository.Options{}))
	report, err := s.CheckStorageRepository(ctx, "a")
	must(w, err)
	for _, fix := range report.Fixes {
		if fix.Type == repository.Optimize && fix.Images[0] == id {
			return id, fix
		}
	}
	w.Fatalf("%+v", report)
	return "", fix
}

// An image that somebody began to use while it was copied keeps its volumes until he
// releases it.
func TestOptimizeTakesNothingFromWhoUsesIt(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	id, fix := w.degraded()
	s, guest := w.on("h1"), w.on("h2")
	var p repository.Prepared
	s.Formats = []format.Format{&faulty{slow: func() {
		var err error
		p, err = guest.PrepareImage(ctx, "a", id, repository.Preparing{Holder: "vm"})
		must(t, err)
	}}}
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrInUse, "vm on host h2")
	for _, l := range p.Layers {
		if _, err := os.Stat(l.Path); err != nil {
			t.Error(err)
		}
	}
	must(t, guest.ReleaseImage(ctx, "a", id, "vm"))
	must(t, guest.Run(ctx, "a", id))
	w.state("a", id, repository.Optimized)
	w.holds("a", id, w.path("now.raw"))
}

// So does one that is being copied.
func TestOptimizeTakesNothingFromWhoCopiesIt(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	id, fix := w.degraded()
	s := w.on("h1")
	copied, err := s.CreateVirtualDisk(ctx, "a", 0, id, nil, repository.Options{Strategy: repository.Performance, NoAutoFix: true})
	must(t, err)
	volumes := w.files("a")
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrBusy, copied)
	if now := w.files("a"); len(now) != len(volumes)+1 {
		t.Errorf("%q, then %q", volumes, now)
	}
	must(t, s.Run(ctx, "a", copied))
	must(t, s.Run(ctx, "a", id))
	w.state("a", id, repository.Optimized)
	w.holds("a", copied, w.path("now.raw"))
	w.holds("a", id, w.path("now.raw"))
}
