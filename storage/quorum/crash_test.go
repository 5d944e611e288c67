// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// passed returns every failpoint that a verb passes, in order, set to kill.
func passed(t *testing.T, w *world, j job) []string {
	t.Helper()
	log := w.path("failpoints")
	must(t, w.verb(j, "DISKHOOK_FAILPOINT_LOG="+log))
	b, err := os.ReadFile(log)
	must(t, err)
	var points []string
	times := map[string]int{}
	for _, name := range strings.Fields(string(b)) {
		times[name]++
		points = append(points, fmt.Sprintf("%s=kill@%d", name, times[name]))
	}
	return slices.DeleteFunc(points, func(p string) bool { return strings.HasPrefix(p, "transfer.") && !strings.HasSuffix(p, "@1") })
}

// everyCrash kills a verb at every point and runs it again. between sees what
// the crash left.
func everyCrash(t *testing.T, least int, ready func(*testing.T) *world, job func(*world) job, between, after func(*world)) {
	probe := ready(t)
	points := passed(t, probe, job(probe))
	after(probe)
	if len(points) < least {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			w := ready(t)
			if err := w.verb(job(w), "DISKHOOK_FAILPOINT="+point); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the failpoint did not fire: %v", err)
			}
			between(w)
			must(t, w.verb(job(w)))
			after(w)
			w.tidy()
		})
	}
}

// tidy fails when a verb left more than definition, images, marks and state.
func (w *world) tidy() {
	w.Helper()
	set, err := w.Load("db")
	if err == nil && set.Intent != nil {
		w.Errorf("the intent %+v stays", *set.Intent)
	}
	left, err := filepath.Glob(w.path("var/lib/diskhook/quorum/*/*.cursor"))
	if must(w.T, err); len(left) > 0 {
		w.Errorf("left behind: %v", left)
	}
}

func TestBuildConvergesAfterACrashAtEveryPoint(t *testing.T) {
	everyCrash(t, 12, newWorld,
		func(w *world) job { b := w.building(); return job{Build: &b} },
		func(w *world) {
			set, err := w.Load("db")
			must(w.T, err) // the intent is durable before the first failpoint
			d, _, err := w.Decide(w.Context(), set)
			must(w.T, err)
			if set.Intent != nil {
				w.refused(d.Veto, failure.Precondition, "its build did not end")
				_, err := w.Verify(w.Context(), "db", nil)
				w.refused(err, failure.Conflict, "its build did not end", "diskhook quorum build")
			} else {
				w.holds(w.flat)
			}
		},
		func(w *world) { w.holds(w.flat); w.opens("r1", "r2", "r3") })
}

// stale is a set of which r3 missed writes that the others took.
func stale(t *testing.T) *world {
	w := built(t)
	set, err := w.Load("db")
	must(t, err)
	d := w.decision()
	g, err := w.Raise(t.Context(), set, d.Base, d.Next, []string{"r1", "r2"})
	must(t, err)
	w.spoil("r1", "0x77", "2M", "100k")
	w.spoil("r2", "0x77", "2M", "100k")
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 2M 100k", w.flat)
	must(t, w.MarkClean(t.Context(), set, g))
	w.opens("r1", "r2")
	return w
}

func TestResyncConvergesAfterACrashAtEveryPoint(t *testing.T) {
	everyCrash(t, 6, stale,
		func(*world) job { return job{Resync: &quorum.Resyncing{}} },
		func(w *world) {
			d := w.decision()
			if d.Veto != nil || !slices.Contains(d.Open, "r1") || !slices.Contains(d.Open, "r2") {
				w.Errorf("the crash takes the set away: %+v", d)
			}
			for _, id := range d.Open {
				w.same(w.replica(id), w.flat)
			}
		},
		func(w *world) { w.holds(w.flat); w.opens("r1", "r2", "r3") })
}

// torn is a set that was not closed cleanly, and whose replicas all differ.
func torn(t *testing.T) *world {
	w := built(t)
	set, err := w.Load("db")
	must(t, err)
	d := w.decision()
	_, err = w.Raise(t.Context(), set, d.Base, d.Next, d.Open)
	must(t, err)
	w.spoil("r1", "0x71", "2M", "100k")
	w.spoil("r2", "0x72", "2M", "100k")
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x72 2M 100k", w.flat)
	return w
}

func TestResyncFromOneConvergesAfterACrashAtEveryPoint(t *testing.T) {
	everyCrash(t, 7, torn,
		func(*world) job { return job{Resync: &quorum.Resyncing{From: "r2"}} },
		func(w *world) {
			d := w.decision()
			for _, id := range d.Open {
				if d.Veto == nil && !d.Unclean {
					w.same(w.replica(id), w.flat)
				}
			}
			if d.Veto != nil {
				w.refused(d.Veto, failure.Precondition, "diskhook quorum resync --from r2 db")
			}
		},
		func(w *world) { w.holds(w.flat); w.opens("r1", "r2", "r3") })
}

func TestReplaceConvergesAfterACrashAtEveryPoint(t *testing.T) {
	everyCrash(t, 8, built,
		func(w *world) job {
			return job{Replace: &quorum.Replacing{Old: "r3", New: w.file("d.qcow2", "qcow2")}}
		},
		func(w *world) {
			d := w.decision()
			if d.Veto != nil || len(d.Open) < 2 {
				w.Errorf("the crash takes the set away: %+v", d)
			}
			for _, id := range d.Open {
				w.same(w.replica(id), w.flat)
			}
		},
		func(w *world) {
			w.holds(w.flat)
			w.opens("r1", "r2", "r4")
			if _, err := os.Stat(w.path("c.raw.quorum")); !errors.Is(err, fs.ErrNotExist) {
				w.Logf("the old mark stays: %v", err)
			}
		})
}

func TestRemoveConvergesAfterACrashAtEveryPoint(t *testing.T) {
	deleteImages := true
	everyCrash(t, 4, built,
		func(*world) job { return job{Remove: &deleteImages} },
		func(w *world) {},
		func(w *world) {
			for _, name := range []string{"a.raw", "b.qcow2", "c.raw", "a.raw.quorum", "b.qcow2.quorum", "c.raw.quorum", "etc/diskhook/quorum.d/db.json"} {
				if _, err := os.Stat(w.path(name)); !errors.Is(err, fs.ErrNotExist) {
					w.Errorf("%s is there: %v", name, err)
				}
			}
			if _, err := os.Stat(w.path("base.raw")); err != nil {
				w.Errorf("the source is gone: %v", err)
			}
		})
}
