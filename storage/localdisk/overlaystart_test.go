// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// A header that says too early that the image is whole, as one does that QEMU
// had no time to write the rest of, is put right.
func TestStartPutsTheSourceBelowAgain(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		w.starts()
		after := w.writes()
		w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", w.stable())
		w.reboot()
		w.shows(after)
		if to := w.below(); to != w.source[0].Path {
			t.Errorf("it lies on %q", to)
		}
		must(t, w.settles())
		w.away()
		w.shows(after)
	})
}

func TestStartRefusesAnotherSource(t *testing.T) {
	touch := func(w *world) { w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x99 0 4k", w.path("base.raw")) }
	t.Run("gone", func(t *testing.T) {
		w := instantWorld(t, "dir")
		w.starts()
		w.away()
		w.reboot()
		w.vetoed("is not settled", "cannot be read", "diskhook local settle vm vda", "diskhook local recreate --discard-guest-data vm vda")
	})
	t.Run("changed", func(t *testing.T) {
		w := instantWorld(t, "dir")
		w.starts()
		w.reboot()
		touch(w)
		w.vetoed("is not settled", "changed since", "diskhook local recreate --discard-guest-data vm vda")
		if err := w.settles(); err == nil || !strings.Contains(err.Error(), "changed since") {
			t.Errorf("settled from another source: %v", err)
		}
	})
	t.Run("changed before the first start", func(t *testing.T) {
		w := instantWorld(t, "dir")
		must(t, service().Prestage(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}))
		touch(w)
		w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
		w.shows(w.flat)
	})
	t.Run("rebased", func(t *testing.T) {
		w := instantWorld(t, "dir")
		w.starts()
		w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", w.path("mid.qcow2"), "-F", "qcow2", w.stable())
		w.reboot()
		w.vetoed("lies on", "mid.qcow2", "qemu-img rebase")
	})
	t.Run("opened as raw", func(t *testing.T) {
		w := instantWorld(t, "dir")
		w.starts()
		w.reboot()
		d := w.disk()
		d.Opened = "raw"
		_, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
		if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.Line(err), "set type='qcow2'") {
			t.Errorf("%v", err)
		}
	})
}

// Who reads the overlay, for a backup say, does not keep a start from looking at
// it and below it.
func TestStartLooksAtAnOverlayThatSomebodyReads(t *testing.T) {
	reads := func(w *world) *os.File {
		f, err := os.Open(w.path("var/lib/diskhook/local/dh_" + domain + "_vda.qcow2"))
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	t.Run("and is as it was", func(t *testing.T) {
		w := instantWorld(t, "dir")
		after := w.guestWrote()
		reads(w)
		w.shows(after)
	})
	t.Run("on a source that changed", func(t *testing.T) {
		w := instantWorld(t, "dir")
		w.starts()
		w.reboot()
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x99 0 4k", w.path("base.raw"))
		reads(w)
		w.vetoed("is not settled", "changed since")
	})
	t.Run("and that lost its source", func(t *testing.T) {
		w := instantWorld(t, "dir")
		w.starts()
		after := w.writes()
		w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", w.stable())
		file := reads(w)
		w.starts() // of a running domain, whose header it is not ours to write
		if to := w.below(); to != "" {
			t.Errorf("it was put on %q below a running domain", to)
		}
		w.reboot()
		w.vetoed("somebody reads it", "lsof ")
		must(t, file.Close())
		w.shows(after)
	})
}

// A start does not wait for who settles its disk.
func TestStartStopsTheSettling(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		after := w.guestWrote()
		settling := exec.Command(os.Args[0], "settle", "4096") // which takes minutes
		settling.Env = os.Environ()
		must(t, settling.Start())
		for {
			st, err := os.ReadFile(w.path("run/diskhook/status/" + domain + "/vda.json"))
			if err == nil && strings.Contains(string(st), `"copying"`) {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
		w.shows(after)
		if err := settling.Wait(); err == nil {
			t.Error("the settling came to its end")
		}
		if !w.receipt().Unsettled() {
			t.Error("settled")
		}
		w.reboot()
		must(t, w.settles())
		w.away()
		w.shows(after)
	})
}
