// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

func TestCopyLiesOnItsTemplate(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		w := newLying(t, backend)
		w.lies(w.disk())
		got := w.theTemplate()
		if got.Clones != 1 || got.Lying != 1 || got.From != w.path("base.raw") || got.Backend != backend || !strings.Contains(got.Kept, "1 copies lie on it") {
			t.Errorf("template %+v", got)
		}
		if to := w.below(); to != got.Path {
			t.Errorf("it lies on %q, the template is %q", to, got.Path)
		}
		r := w.receipt()
		if !r.OnTemplate() || r.Overlay.Template.Name != got.Name || r.Overlay.Template.Path != got.Path || r.Unsettled() || !r.Used || r.Size != 3<<20 {
			t.Errorf("receipt %+v", r)
		}
		// Its own images and nothing of the base: 128 KiB and 64 KiB of data, zeros
		// of 33 KiB and those beyond the end of the middle image, in whole clusters.
		if n := w.own(); n != 128<<10+128<<10+64<<10+1536<<10 {
			t.Errorf("it has %d bytes of its own", n)
		}
		after := w.writes()
		w.reboot()
		w.away() // the shared storage is needed no more
		w.shows(after)
		entries, err := service().List(t.Context())
		must(t, err)
		if len(entries) != 1 || entries[0].Problem != "" || entries[0].Copy.Origin != got.Name {
			t.Errorf("list %+v", entries)
		}
		if err := w.settles(); err == nil || !strings.Contains(err.Error(), "nothing of it is in its source") {
			t.Errorf("settled: %v", err)
		}
	})
}

func TestTwentyOverlaysAtOnceCopyTheTemplateOnce(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		w := newLying(t, backend)
		if backend == "lvm" {
			must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Size *= 2 }))
		}
		for _, path := range w.startTwenty(map[string]int{"template.created": 1, "template.filled": 1, "overlay.filled": 20, "fill.finished": 20}) {
			w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, w.flat)
		}
		if got := w.theTemplate(); got.Lying != 20 {
			t.Errorf("template %+v", got)
		}
	})
}

// A crash at any point of a first start, in the template or in the overlay, is
// made good by the same start; and at none of them the template may go that a
// complete overlay lies on.
func TestOverlayOnTemplateSurvivesACrashAtEveryPoint(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		probe := newLying(t, backend)
		points := passed(t, probe, probe.starts)
		if len(points) < 14 || !slices.Contains(points, "overlay.filled=kill@1") || !slices.Contains(points, "template.finished=kill@1") {
			t.Fatalf("only these failpoints: %v", points)
		}
		for _, point := range points {
			t.Run(point, func(t *testing.T) {
				w := newLying(t, backend)
				w.crash(point)
				must(t, w.process("gc")) // takes what nobody needs
				w.lies(w.disk())
				w.lies(w.numbered(1))
				if got := w.theTemplate(); got.Lying != 2 || got.Busy {
					t.Errorf("template %+v", got)
				}
				w.same(w.contentOf(w.theTemplate()), w.path("base.raw"))
			})
		}
	})
}

// Nothing removes a template while anything says that an overlay needs it: its
// tags, its header, its receipt, or that one of these cannot be read.
func TestTemplateBelowAnOverlayStays(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		sidecar := "var/lib/diskhook/local/dh_" + domain + "_vda.json"
		receipt := "var/lib/diskhook/receipts/" + domain + "/vda.json"
		losses := map[string]func(w *world){
			"nothing":     func(*world) {},
			"its receipt": func(w *world) { must(t, os.Remove(w.path(receipt))) },
			"what its receipt says": func(w *world) {
				must(t, os.WriteFile(w.path(receipt), []byte("{"), 0o600))
			},
		}
		if backend == "dir" { // a volume has its tags as long as it is there, and is not moved away
			losses["its tags"] = func(w *world) { must(t, os.Remove(w.path(sidecar))) }
			losses["all but its header"] = func(w *world) {
				must(t, errors.Join(os.Remove(w.path(sidecar)), os.Remove(w.path(receipt))))
			}
			losses["the copy, for a moment"] = func(w *world) { must(t, os.Rename(w.copyFile(), w.path("moved"))) }
		}
		for lost, lose := range losses {
			t.Run(lost, func(t *testing.T) {
				w := newLying(t, backend)
				w.lies(w.disk())
				w.reboot()
				lose(w)
				got := w.theTemplate()
				if got.Kept == "" {
					t.Errorf("not kept: %+v", got)
				}
				for _, wipe := range []localdisk.Wipe{localdisk.WipeNone, localdisk.WipeZero} {
					if err := service().EvictTemplate(t.Context(), got.Name, wipe); !errors.Is(err, failure.Conflict) {
						t.Errorf("evicted: %v", err)
					}
				}
				must(t, w.process("gc"))
				w.same(w.contentOf(w.theTemplate()), w.path("base.raw"))
			})
		}
		t.Run("until the overlay is gone", func(t *testing.T) {
			w := newLying(t, backend)
			w.lies(w.disk())
			w.reboot()
			must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
			must(t, w.process("gc"))
			if all := w.templates(); len(all) != 0 {
				t.Errorf("templates %+v", all)
			}
		})
	})
}

func TestStartRefusesAnotherTemplate(t *testing.T) {
	recreate := "diskhook local recreate --discard-guest-data vm vda"
	for name, c := range map[string]struct {
		change func(w *world, template string)
		words  []string
	}{
		"gone": {func(w *world, template string) { must(t, os.Rename(template, template+".away")) }, []string{"lies on the template", "is gone", recreate}},
		"written to": {func(w *world, template string) {
			w.tool("chmod", "600", template)
			w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x99 0 4k", template)
		}, []string{"lies on the template", "was written to", "mix of both", recreate}},
		"another": {func(w *world, template string) {
			side := strings.TrimSuffix(template, ".raw") + ".json"
			w.tool("sed", "-i", `s/"uuid": *"[^"]*"/"uuid":"6f0d2fd5-2a3f-4e7e-9a06-6d4b2f5f3b11"/`, side)
		}, []string{"is another one now", recreate}},
		"rebased": {func(w *world, template string) {
			w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", w.path("mid.qcow2"), "-F", "qcow2", w.copyFile())
		}, []string{"lies on", "mid.qcow2", "qemu-img rebase"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLying(t, "dir")
			w.lies(w.disk())
			w.reboot()
			c.change(w, w.theTemplate().Path)
			w.vetoed(c.words...)
		})
	}
	t.Run("lost in the header", func(t *testing.T) {
		eachPlain(t, func(t *testing.T, backend string) {
			w := newLying(t, backend)
			w.lies(w.disk())
			after := w.writes()
			w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", w.stable())
			w.reboot()
			w.shows(after)
		})
	})
}

// An export has what the guest saw, of which a part is in the template.
func TestExportOfAnOverlayOnATemplate(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		w := newLying(t, backend)
		after := w.guestWrote()
		w.away()
		for _, format := range []string{"raw", "qcow2"} {
			to := w.path("export." + format)
			must(t, service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: to, Format: format}))
			w.tool("qemu-img", "compare", "-q", "-f", format, "-F", "raw", to, after)
		}
		if backend == "lvm" && w.volume("dh_"+domain+"_vda").Active {
			t.Error("the copy is active")
		}
	})
}

// Made raw, a disk needs its template no more, and that may go.
func TestOverlayOnATemplateBecomesRaw(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		w := newLying(t, backend)
		after := w.guestWrote()
		w.away()
		must(t, w.process("raw"))
		w.isRaw(after)
		if got := w.theTemplate(); got.Clones != 0 || got.Lying != 0 {
			t.Errorf("template %+v", got)
		}
	})
}

// What is recreated lies on the same template.
func TestRecreateAnOverlayOnATemplate(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		w := newLying(t, backend)
		w.starts()
		w.writes()
		before := w.theTemplate().Name
		w.reboot()
		must(t, service().Recreate(t.Context(), w.disk(), localdisk.GiveUp{DiscardGuestData: true}, localdisk.Waiting{}))
		w.lies(w.disk())
		if got := w.theTemplate(); got.Name != before || got.Lying != 1 {
			t.Errorf("template %+v, was %s", got, before)
		}
		if _, err := service().Resize(t.Context(), domain, "vda", 24<<20); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "local settle --raw") {
			t.Errorf("grown: %v", err)
		}
	})
}

// Receipts that were lost are made anew: the header says what it lies on.
func TestAdoptAnOverlayOnATemplate(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		for _, sidecar := range []bool{true, false} {
			if backend != "dir" && !sidecar {
				continue
			}
			t.Run(fmt.Sprintf("sidecar %v", sidecar), func(t *testing.T) {
				w := newLying(t, backend)
				after := w.guestWrote()
				was := w.receipt()
				must(t, os.Remove(w.path("var/lib/diskhook/receipts/"+domain+"/vda.json")))
				if !sidecar {
					must(t, os.Remove(w.path("var/lib/diskhook/local/dh_"+domain+"_vda.json")))
				}
				w.vetoed("diskhook local adopt vm vda")
				must(t, service().Adopt(t.Context(), w.disk()))
				if r := w.receipt(); !r.OnTemplate() || *r.Overlay.Template != *was.Overlay.Template || r.Unsettled() || r.Size != 3<<20 {
					t.Errorf("receipt %+v, was %+v", r, was)
				}
				w.away()
				w.shows(after)
				entries, err := service().List(t.Context())
				must(t, err)
				if entries[0].Copy.Origin != w.theTemplate().Name {
					t.Errorf("its tags do not say so: %+v", entries[0].Copy)
				}
			})
		}
	})
}

func TestOverlayOnATemplateIsRefusedWithoutABase(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world)
		words  string
	}{
		"one image":    {func(w *world) { w.source = []imagecheck.Layer{{Path: w.path("base.raw"), Format: "raw"}} }, "its source is one image"},
		"no cache":     {func(w *world) { t.Setenv("DISKHOOK_TEST_CACHE", "") }, "[local] cache is off"},
		"block device": {func(w *world) { w.onDevice() }, "block device"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLying(t, "dir")
			if name == "no cache" {
				t.Setenv("DISKHOOK_TEST_CACHE", "")
			} else {
				c.change(w)
			}
			err := service().Shareable(t.Context(), []localdisk.Disk{w.disk()})
			if !errors.Is(err, failure.Precondition) || !strings.Contains(failure.Line(err), c.words) || !strings.Contains(failure.HintOf(err), "diskhook domain revert vm") {
				t.Errorf("shareable: %v", err)
			}
			w.vetoed(c.words)
			if files, _ := filepath.Glob(w.path("var/lib/diskhook/local/*")); len(files) != 0 {
				t.Errorf("left: %v", files)
			}
		})
	}
}

// A file has room for all but what its template holds, so that no guest meets a
// full file system.
func TestOverlayOnATemplateReservesItsRoom(t *testing.T) {
	w := newLying(t, "dir")
	w.lies(w.disk())
	out, err := exec.Command("stat", "-c", "%b %B", w.copyFile()).Output()
	must(t, err)
	var blocks, size int64
	_, err = fmt.Sscan(string(out), &blocks, &size)
	must(t, err)
	if got, least := blocks*size, int64(3<<20-2162688); got < least {
		t.Errorf("%d bytes are reserved, want %d at least", got, least)
	}
}

// A dry run shows what is done, and does none of it.
func TestCommandsShowTheOverlayOnATemplate(t *testing.T) {
	eachPlain(t, func(t *testing.T, backend string) {
		w := newLying(t, backend)
		s := service()
		show := func() string {
			observed, err := s.Observe(t.Context(), []localdisk.Disk{w.numbered(1)})
			must(t, err)
			return strings.Join(s.Commands(t.Context(), observed[0], localdisk.Decide(observed[0])), "\n")
		}
		first := show()
		if all := w.templates(); len(all) != 0 {
			t.Errorf("templates %+v", all)
		}
		w.lies(w.disk())
		for what, text := range map[string]string{"first": first, "second": show()} {
			for _, words := range []string{"qemu-img create -q -f qcow2 -u -b " + w.source[0].Path, "# read into it what of"} {
				if !strings.Contains(text, words) {
					t.Errorf("%s: %q is missing in\n%s", what, words, text)
				}
			}
			if makes := strings.Contains(text, "opy "+w.path("base.raw")+" to "); makes != (what == "first") {
				t.Errorf("%s: the template is made: %v\n%s", what, makes, text)
			}
		}
	})
}
