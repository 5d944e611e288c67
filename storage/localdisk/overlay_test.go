// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// A start with fill=instant makes an overlay that has nothing of its source,
// and shows all of it.
func TestInstantStartCopiesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		w.shows(w.flat)
		if n := w.own(); n != 0 {
			t.Errorf("%d bytes were copied", n)
		}
		if r := w.receipt(); !r.Unsettled() || !r.Used || r.Size != 3<<20 || r.Fingerprint == "" || len(r.Source) != 3 {
			t.Errorf("receipt %+v", r)
		}
		if to := w.below(); to != w.source[0].Path {
			t.Errorf("it lies on %q", to)
		}
		w.onlyCopy()
		after := w.writes()
		w.reboot()
		w.shows(after)
		w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", w.source[0].Path, w.flat)
	})
}

func TestFirstInstantStartSurvivesACrashAtEveryPoint(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		probe := instantWorld(t, backend)
		points := passed(t, probe, probe.starts)
		if len(points) < 8 {
			t.Fatalf("only %d failpoints: %v", len(points), points)
		}
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				w := instantWorld(t, backend)
				w.crash(point)
				w.shows(w.flat)
				w.onlyCopy()
			})
		}
	})
}

// Settled, the disk is what it was, and needs its source no more.
func TestSettleOffline(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		after := w.guestWrote()
		must(t, w.settles())
		if r := w.receipt(); r.Unsettled() || r.Overlay == nil {
			t.Errorf("receipt %+v", r)
		}
		if err := w.settles(); err == nil || !strings.Contains(err.Error(), "nothing of it is in its source") {
			t.Errorf("a second time: %v", err)
		}
		w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", w.source[0].Path, w.flat)
		w.away()
		w.shows(after)
		if to := w.below(); to != "" {
			t.Errorf("it lies on %q", to)
		}
		w.onlyCopy()
	})
}

// Wherever the settling dies, a guest finds what it wrote and what it did not;
// the next settling goes on.
func TestSettleOfflineSurvivesACrashAtEveryPoint(t *testing.T) {
	begun := func(t *testing.T, backend string) (*world, string) {
		w := instantWorld(t, backend)
		return w, w.guestWrote()
	}
	eachBackend(t, func(t *testing.T, backend string) {
		probe, _ := begun(t, backend)
		points := passed(t, probe, func() { must(t, probe.settles()) })
		if len(points) < 5 {
			t.Fatalf("only %d failpoints: %v", len(points), points)
		}
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				w, after := begun(t, backend)
				if err := w.settles("DISKHOOK_FAILPOINT=" + point); err == nil {
					t.Fatal("the failpoint did not fire")
				}
				w.awaitUnlocked()
				w.shows(after)
				w.reboot()
				if err := w.settles(); err != nil && !strings.Contains(err.Error(), "nothing of it is in its source") {
					t.Fatal(err)
				}
				w.away()
				w.shows(after)
			})
		}
	})
}

// An export has what the guest saw, of which a part is in the source.
func TestExportOfAnOverlay(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		after := w.guestWrote()
		to := w.path("export.raw")
		must(t, service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: to, Format: "raw"}))
		w.same(to, after)
		err := service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{})
		if !errors.Is(err, failure.Conflict) {
			t.Errorf("an overlay that a guest used was removed: %v", err)
		}
		must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
		w.shows(w.flat)
	})
}

// Receipts that were lost are made anew on the operator's word: of an overlay
// that lies on its source, and of one that does not.
func TestAdoptOverlay(t *testing.T) {
	for _, settled := range []bool{false, true} {
		eachBackend(t, func(t *testing.T, backend string) {
			w := instantWorld(t, backend)
			after := w.guestWrote()
			if settled {
				must(t, w.settles())
			}
			must(t, os.Remove(w.path("var/lib/diskhook/receipts/"+domain+"/vda.json")))
			w.vetoed("diskhook local adopt vm vda")
			must(t, service().Adopt(t.Context(), w.disk()))
			if r := w.receipt(); r.Unsettled() == settled || r.Size != 3<<20 {
				t.Errorf("receipt %+v", r)
			}
			w.shows(after)
		})
	}
}

// What a change to a raw copy left is its disk's, and the verb that ends the
// change, which asks libvirt which of the two is the disk, is named.
func TestGCNamesWhatEndsAnInterruptedChangeToRaw(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := instantWorld(t, backend)
		w.starts()
		after := w.writes()
		p, err := service().Pivoting(domain, "vda")
		must(t, err)
		_, err = p.Make(t.Context())
		must(t, err)
		raw := func() localdisk.Judged {
			all, err := service().Judge(t.Context(), nil)
			must(t, err)
			i := slices.IndexFunc(all, func(j localdisk.Judged) bool { return j.Kind == "copy" && strings.Contains(j.Object, "vda_raw") })
			if i < 0 || all[i].Domain != domain || all[i].Disk != "vda" || all[i].Take {
				t.Fatalf("judged %+v", all)
			}
			return all[i]
		}
		if j := raw(); !strings.Contains(j.Reason, "somebody works on it") {
			t.Errorf("while it is made: %+v", j)
		}
		p.Release(errors.New("killed"))
		if j := raw(); j.Hint != "diskhook local settle --raw "+domain+" vda" {
			t.Errorf("judged %+v", j)
		}
		must(t, w.process("gc"))
		w.reboot()
		w.shows(after)
		receipt := w.path("var/lib/diskhook/receipts/" + domain + "/vda.json")
		must(t, os.Rename(receipt, receipt+".lost"))
		if j := raw(); !strings.Contains(j.Reason, "no receipt says so") || !slices.ContainsFunc([]string{"rm ", "lvremove ", "diskhook local gc --yes --discard-guest-data "}, func(by string) bool { return strings.HasPrefix(j.Hint, by) }) {
			t.Errorf("without a receipt: %+v", j)
		}
		must(t, service().Discard(t.Context(), raw(), localdisk.WipeNone))
		must(t, os.Rename(receipt+".lost", receipt))
		w.shows(after)
	})
}

// What was not active is not left active by who only reads it or settles it,
// whatever came of that.
func TestSettleAndExportLeaveNoVolumeActive(t *testing.T) {
	for _, backend := range []string{"lvm", "lvmthin"} {
		for name, c := range map[string]struct {
			does func(*world) error
			ends bool
		}{
			"settled":     {func(w *world) error { return w.settles() }, true},
			"not settled": {func(w *world) error { return w.settles("DISKHOOK_FAILPOINT=settle.begun=error") }, false},
			"exported":    {func(w *world) error { return w.process("export", "DISKHOOK_TEST_EXPORT="+w.path("to.raw")) }, true},
			"not exported": {func(w *world) error {
				return w.process("export", "DISKHOOK_TEST_EXPORT="+w.path("to.raw"), "DISKHOOK_FAILPOINT=export.written=error")
			}, false},
			"exported to nobody": {func(w *world) error { return w.process("export", "DISKHOOK_TEST_EXPORT="+w.path("no/to.raw")) }, false},
		} {
			t.Run(backend+" "+name, func(t *testing.T) {
				w := instantWorld(t, backend)
				after := w.guestWrote()
				if err := c.does(w); (err == nil) != c.ends {
					t.Fatalf("%v", err)
				}
				if w.volume("dh_" + domain + "_vda").Active {
					t.Error("it is active")
				}
				w.shows(after)
				if !w.volume("dh_" + domain + "_vda").Active {
					t.Error("a start did not activate it")
				}
			})
		}
	}
}
