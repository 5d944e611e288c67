// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// passed returns every failpoint that what passes, in order, set to kill.
func passed(t *testing.T, w *world, what func()) []string {
	t.Helper()
	log := w.path("failpoints")
	t.Setenv("DISKHOOK_FAILPOINT_LOG", log)
	what()
	t.Setenv("DISKHOOK_FAILPOINT_LOG", "")
	b, err := os.ReadFile(log)
	must(t, err)
	var points []string
	times := map[string]int{}
	for _, name := range strings.Fields(string(b)) {
		times[name]++
		points = append(points, fmt.Sprintf("%s=kill@%d", name, times[name]))
	}
	return points
}

func eachBackend(t *testing.T, run func(t *testing.T, backend string)) {
	for _, backend := range localdisk.Backends() {
		t.Run(backend, func(t *testing.T) { run(t, backend) })
	}
}

// A crash at any point of a first start leaves nothing that the same start,
// run again, does not turn into a complete copy; and never a ready copy with
// other content.
func TestFirstStartSurvivesACrashAtEveryPoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		probe := newWorld(t, backend)
		points := passed(t, probe, func() { _, err := probe.hook(); must(t, err) })
		if len(points) < 9 {
			t.Fatalf("only %d failpoints: %v", len(points), points)
		}
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				w := newWorld(t, backend)
				w.crash(point)
				if w.ready() {
					w.same(w.content(), w.flat)
				}
				_, err := w.hook()
				must(t, err)
				w.same(w.stable(), w.flat)
				w.onlyCopy()
			})
		}
	})
}

// crash runs a start that is killed at a failpoint. A copy process that dies
// when all is done is not missed.
func (w *world) crash(point string) {
	w.t.Helper()
	done := strings.HasPrefix(point, "fill.finished")
	if _, err := w.hook("DISKHOOK_FAILPOINT=" + point); (err == nil) != done {
		w.t.Fatalf("it ended with %v", err)
	}
	w.awaitUnlocked()
}

// What the guest wrote is there after a crash at any point of a later start,
// even when the shared storage is away.
func TestLaterStartKeepsGuestWritesAtEveryPoint(t *testing.T) {
	started := func(t *testing.T, w *world) string {
		_, err := w.hook()
		must(t, err)
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
		after := w.path("after-guest.raw")
		w.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", w.stable(), after)
		w.reboot()
		for _, layer := range w.source {
			must(t, os.Remove(layer.Path))
		}
		return after
	}
	eachBackend(t, func(t *testing.T, backend string) {
		probe := newWorld(t, backend)
		started(t, probe)
		for _, point := range passed(t, probe, func() { _, err := probe.hook(); must(t, err) }) {
			t.Run(point, func(t *testing.T) {
				w := newWorld(t, backend)
				after := started(t, w)
				if _, err := w.hook("DISKHOOK_FAILPOINT=" + point); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				_, err := w.hook()
				must(t, err)
				w.same(w.stable(), after)
			})
		}
	})
}

// A verb that gave a copy up is finished by whoever comes next, and the next
// start copies afresh.
func TestGivingUpConvergesAtEveryPoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		for _, point := range []string{"discard.intent", "discard.removed", "discard.done"} {
			t.Run(point, func(t *testing.T) {
				w := newWorld(t, backend)
				_, err := w.hook()
				must(t, err)
				w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
				t.Setenv("DISKHOOK_FAILPOINT", point+"=error")
				if err := service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				t.Setenv("DISKHOOK_FAILPOINT", "")
				_, err = w.hook()
				must(t, err)
				w.same(w.stable(), w.flat)
			})
		}
	})
}

// A copy that no guest used, of a source that changed since, is replaced: a
// crash in between never leaves a complete copy of which nobody knows that it
// is old.
func TestReplacingAStaleCopyConvergesAtEveryPoint(t *testing.T) {
	stale := func(t *testing.T, backend string) *world {
		w := newWorld(t, backend)
		must(t, service().Prestage(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}))
		w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 2M 64k", w.source[0].Path)
		w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
		return w
	}
	eachBackend(t, func(t *testing.T, backend string) {
		probe := stale(t, backend)
		points := passed(t, probe, func() {
			must(t, service().Prestage(t.Context(), []localdisk.Disk{probe.disk()}, localdisk.Waiting{}))
		})
		created := slices.Index(points, "fill.created=kill@1") // from there on it is a first start
		if created < 2 {
			t.Fatalf("passed %v", points)
		}
		for _, point := range points[:created] {
			t.Run(point, func(t *testing.T) {
				w := stale(t, backend)
				disks := []localdisk.Disk{w.disk()}
				t.Setenv("DISKHOOK_FAILPOINT", point)
				if err := service().Prestage(t.Context(), disks, localdisk.Waiting{}); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				t.Setenv("DISKHOOK_FAILPOINT", "")
				w.awaitUnlocked()
				must(t, service().Prestage(t.Context(), disks, localdisk.Waiting{}))
				w.same(w.content(), w.flat)
				w.onlyCopy()
			})
		}
	})
}

// A resize that crashed is finished by the next start; the guest never sees
// what was on the disk before.
func TestResizeConvergesAtEveryPoint(t *testing.T) {
	const size = 24 << 20
	eachBackend(t, func(t *testing.T, backend string) {
		for _, point := range []string{"resize.intent", "resize.extended", "resize.zeroed"} {
			t.Run(point, func(t *testing.T) {
				w := newWorld(t, backend)
				_, err := w.hook()
				must(t, err)
				t.Setenv("DISKHOOK_FAILPOINT", point+"=error")
				if _, err := service().Resize(t.Context(), domain, "vda", size); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				t.Setenv("DISKHOOK_FAILPOINT", "")
				out, err := w.hook()
				must(t, err)
				if !strings.Contains(out, fmt.Sprintf(`"size":%d`, size)) {
					t.Errorf("placement %s, want size %d", out, size)
				}
				w.same(w.stable(), w.flat)
			})
		}
	})
}

// onlyCopy fails when anything but the one copy lies about.
func (w *world) onlyCopy() {
	w.t.Helper()
	if w.backend == "thin" {
		labels, err := filepath.Glob(w.path("var/lib/diskhook/thin/san.labels/*"))
		must(w.t, err)
		must(w.t, thePool().do(func(s *poolState) error {
			if len(s.Volumes) != 1 || len(labels) != 1 {
				w.t.Errorf("left behind: %v, labels %q", s.Volumes, labels)
			}
			return nil
		}))
		return
	}
	if w.backend != "dir" {
		g, err := lvmtest.Load(w.path("lvm"))
		must(w.t, err)
		if len(g.Volumes) != 2 { // the pool and the copy
			w.t.Errorf("left behind: %v", g.Volumes)
		}
		return
	}
	files, err := filepath.Glob(w.path("var/lib/diskhook/local/*"))
	must(w.t, err)
	if len(files) != 2 { // file and sidecar
		w.t.Errorf("left behind: %v", files)
	}
}
