// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format/clvm"
)

// fenced is what a lock manager does with a host that died: what it had active
// others may have.
func (w *world) fenced(hostID string) {
	w.Helper()
	for _, repo := range []string{"a", "b"} {
		must(w, lvmtest.Change(w.path("groups", repo), func(g *lvmtest.Group) {
			for _, v := range g.Volumes {
				delete(v.On, hostID)
			}
		}))
	}
	must(w, os.RemoveAll(w.path("dev", hostID)))
}

// A host that was killed in the middle has its volumes until it is fenced, and what
// goes on elsewhere begins in new ones.
func TestAHostOfAGroupDies(t *testing.T) {
	ctx := t.Context()
	w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: "sanlock"}
	w.connect()
	args := both(w)
	if err := w.process("h1", "copy", args, "DISKHOOK_FAILPOINT=repository.volume.data=kill@1"); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the failpoint did not fire: %v", err)
	}
	old := w.logical("b")
	must(t, w.on("h2").Resume(ctx, "b"))
	copied := w.newest("b")
	w.holds("b", copied, w.path("now.raw"))
	p, err := w.on("h2").PrepareImage(ctx, "b", copied, repository.Preparing{Holder: "vm"})
	must(t, err)
	if slices.Contains(old, p.Path[strings.LastIndex(p.Path, "/")+1:]) {
		t.Errorf("%s is published, which the host that was killed has active", p.Path)
	}
	must(t, w.on("h2").ReleaseImage(ctx, "b", copied, "vm"))
	report, err := w.on("h2").CheckStorageRepository(ctx, "b")
	must(t, err)
	if len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Clean {
		t.Fatalf("%+v", report)
	}
	err = w.on("h2").FixStorageRepository(ctx, "b", report.Fixes[0], repository.Options{})
	refused(t, err, failure.Conflict, "it is in use")
	w.fenced("h1")
	w.settled()
	unharmed(w, args)
	if left := w.logical("b"); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

// A worker is killed on a host that lives: what it had open others get once that host
// lets go of it, and what it was making is made anew elsewhere, even if nothing says any
// more that somebody died.
func TestAWorkerOfAGroupDies(t *testing.T) {
	ctx := t.Context()
	w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: "sanlock"}
	w.connect()
	args := both(w)
	if err := w.process("h1", "copy", args, "DISKHOOK_FAILPOINT=repository.volume.data=kill@1"); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the failpoint did not fire: %v", err)
	}
	copied := w.newest("b")
	must(t, w.on("h1").SetUserData(ctx, "b", copied, []byte(`"h1 lives"`)))
	must(t, w.on("h2").Resume(ctx, "b"))
	w.holds("b", copied, w.path("now.raw"))
	report, err := w.on("h2").CheckStorageRepository(ctx, "b")
	must(t, err)
	if len(report.Fixes) != 1 {
		t.Fatalf("%+v", report)
	}
	refused(t, w.on("h2").FixStorageRepository(ctx, "b", report.Fixes[0], repository.Options{}), failure.Conflict, "it is in use")
	for _, repo := range []string{"a", "b"} {
		must(t, w.on("h1").LetGo(ctx, repo))
	}
	w.settled()
	unharmed(w, args)
	if left := w.logical("b"); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

// However short the deadline is, what a host that died had locked is taken over.
func TestAShortDeadlineAndAHostThatDies(t *testing.T) {
	ctx := t.Context()
	w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: "sanlock"}
	w.connect()
	args := both(w)
	if err := w.process("h1", "copy", args, "DISKHOOK_FAILPOINT=repository.copy.commit=kill@1"); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the failpoint did not fire: %v", err)
	}
	s := w.on("h2")
	s.Deadline = 2 * time.Second
	must(t, s.SetUserData(ctx, "b", w.newest("b"), []byte(`1`)))
}
