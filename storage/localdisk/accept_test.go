// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// restored puts a copy of each image of the source in its place: another file,
// with the time of the first or with that.
func (w *world) restored(at time.Time) {
	w.t.Helper()
	for _, layer := range w.source {
		w.tool("cp", "-p", layer.Path, layer.Path+".new")
		if !at.IsZero() {
			must(w.t, os.Chtimes(layer.Path+".new", at, at))
		}
		must(w.t, os.Rename(layer.Path+".new", layer.Path))
	}
}

func accepts(t *testing.T, unproven bool) error {
	t.Helper()
	s := service()
	differs, would := s.Accepting(t.Context(), domain, "vda", unproven)
	err := s.AcceptSource(t.Context(), domain, "vda", unproven)
	if fmt.Sprint(would) != fmt.Sprint(err) || (would == nil) != (differs != nil) {
		t.Errorf("tried: %v, %v; done: %v", differs, would, err)
	}
	return err
}

// A source that a backup put back is taken on the operator's word, and then the
// guest finds what it wrote, on that.
func TestAcceptRestoredSource(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		after := w.guestWrote()
		w.restored(time.Time{})
		w.vetoed("is not settled", "changed since", "is another file", "diskhook local accept vm vda")
		must(t, accepts(t, false))
		if differs, err := service().Accepting(t.Context(), domain, "vda", false); differs != nil || err != nil {
			t.Errorf("accepted, and differs: %v, %v", differs, err)
		}
		w.shows(after)
		w.reboot()
		must(t, w.settles())
		w.away()
		w.shows(after)
	})
}

func TestAcceptRefuses(t *testing.T) {
	long := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		change          func(*world)
		doubted, always bool
		words           string
	}{
		"another time":  {func(w *world) { w.restored(long) }, true, false, "was written to at 2020-01-02 03:04:05"},
		"converted":     {converted, true, false, "begins with other data"},
		"other data":    {func(w *world) { w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x99 0 4k", w.path("base.raw")) }, true, true, "base.raw begins with other data"},
		"cut off":       {func(w *world) { w.tool("truncate", "-s", "1M", w.path("base.raw")) }, true, true, "base.raw has 1048576 bytes, and had "},
		"another size":  {func(w *world) { w.tool("qemu-img", "resize", "-q", "-f", "qcow2", w.source[0].Path, "4M") }, true, true, "it has 4194304 bytes for the guest, and the disk has 3145728"},
		"storage away":  {func(w *world) { w.away() }, true, true, "cannot be read"},
		"copy is open":  {func(w *world) { w.restored(time.Time{}); w.opened() }, true, true, "is open"},
		"copy is gone":  {func(w *world) { w.restored(time.Time{}); w.tool("rm", w.overlayFile()) }, true, true, "is gone"},
		"saved memory":  {func(w *world) { w.restored(time.Time{}); must(w.t, localdisk.MarkSaved(service().Layout, domain)) }, false, false, ""},
		"older version": {func(w *world) { w.restored(time.Time{}); w.olderReceipt() }, true, false, "an older version made the overlay"},
	} {
		t.Run(name, func(t *testing.T) {
			w := instantWorld(t, "dir")
			after := w.guestWrote()
			tc.change(w)
			before := w.receipt()
			for _, unproven := range []bool{false, true} {
				refused := tc.always || tc.doubted && !unproven
				err := accepts(t, unproven)
				if !refused {
					must(t, err)
					break
				}
				if err == nil || !strings.Contains(err.Error(), tc.words) || failure.HintOf(err) == "" {
					t.Errorf("unproven %v: %s", unproven, failure.Line(err))
				}
				if now := w.receipt(); now.Fingerprint != before.Fingerprint || !now.Overlay.Accepted.IsZero() {
					t.Errorf("refused, and noted: %+v", now.Overlay)
				}
			}
			if !tc.always {
				must(t, localdisk.ClearSaved(service().Layout, domain))
				w.shows(after)
			}
		})
	}
}

// converted puts an image with the same data and another layout in the place of
// the top one.
func converted(w *world) {
	top := w.source[0].Path
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-B", w.source[1].Path, "-F", w.source[1].Format, "-o", "cluster_size=32k", top, top+".new")
	must(w.t, os.Rename(top+".new", top))
}

func (w *world) overlayFile() string {
	return w.path("var/lib/diskhook/local/dh_" + domain + "_vda.qcow2")
}

// opened has another process keep the overlay open until the test ends.
func (w *world) opened() {
	f, err := os.Open(w.overlayFile())
	must(w.t, err)
	defer f.Close()
	sleep := exec.Command("sleep", "600")
	sleep.Stdin = f
	must(w.t, sleep.Start())
	w.t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
}

// olderReceipt takes out of the receipt what older versions did not note.
func (w *world) olderReceipt() {
	r := w.receipt()
	r.Overlay.Source = nil
	text, err := json.Marshal(r)
	must(w.t, err)
	must(w.t, os.WriteFile(w.path("var/lib/diskhook/receipts/"+domain+"/vda.json"), text, 0o644))
}

// A kill before the receipt is written leaves the source refused, and one after
// that leaves it accepted; the same command, run again, ends the same.
func TestAcceptSurvivesACrashAtEveryPoint(t *testing.T) {
	for _, point := range []string{"accept.checked", "accept.written"} {
		t.Run(point, func(t *testing.T) {
			w := instantWorld(t, "dir")
			after := w.guestWrote()
			w.restored(time.Time{})
			if err := w.process("accept", "DISKHOOK_FAILPOINT="+point+"=kill"); err == nil {
				t.Fatal("the failpoint did not fire")
			}
			if point == "accept.checked" {
				w.vetoed("diskhook local accept vm vda")
			}
			must(t, w.process("accept"))
			w.shows(after)
		})
	}
}

func TestAcceptHasNothingToDo(t *testing.T) {
	w := instantWorld(t, "dir")
	if err := accepts(t, false); !errors.Is(err, failure.NotFound) {
		t.Errorf("no copy: %v", err)
	}
	w.guestWrote()
	before := w.receipt()
	must(t, service().AcceptSource(t.Context(), domain, "vda", true))
	if now := w.receipt(); !now.Overlay.Accepted.IsZero() || now.Fingerprint != before.Fingerprint {
		t.Errorf("nothing differs, and noted: %+v", now.Overlay)
	}
	must(t, w.settles())
	w.restored(time.Time{})
	if err := accepts(t, false); !errors.Is(err, localdisk.ErrSettled) {
		t.Errorf("settled: %v", err)
	}
}
