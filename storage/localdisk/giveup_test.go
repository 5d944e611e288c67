// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

func TestReleaseByReason(t *testing.T) {
	for _, tc := range []struct {
		onStop, reason string
		saved, gone    bool
	}{
		{localdisk.Keep, "shutdown", false, false},
		{localdisk.Discard, "shutdown", false, true},
		{localdisk.Discard, "destroyed", false, true},
		{localdisk.Discard, "crashed", false, false},
		{localdisk.Discard, "saved", false, false},
		{localdisk.Discard, "failed", false, false},
		{localdisk.Discard, "migrated", false, false},
		{localdisk.Discard, "from snapshot", false, false},
		{localdisk.Discard, "daemon", false, false},
		{localdisk.Discard, "unknown", false, false},
		{localdisk.Discard, "", false, false},
		{localdisk.Discard, "shutdown", true, false},
	} {
		t.Run(tc.onStop+" "+tc.reason, func(t *testing.T) {
			w := newWorld(t, "lvm")
			s, d := service(), w.disk()
			d.OnStop = tc.onStop
			_, err := s.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
			must(t, err)
			if tc.saved {
				must(t, localdisk.MarkSaved(s.Layout, domain))
			}
			for range 2 { // stopped and release both come
				must(t, s.Release(t.Context(), domain, []localdisk.Disk{d}, tc.reason))
			}
			g, err := lvmtest.Load(w.path("lvm"))
			must(t, err)
			v := g.Volumes["dh_"+domain+"_vda"]
			if (v == nil) != tc.gone {
				t.Fatalf("volume %+v", v)
			}
			if v != nil && v.Active {
				t.Error("still active")
			}
			if _, err := os.Lstat(w.stable()); err == nil {
				t.Error("the stable path is still there")
			}
		})
	}
}

func TestReleaseLeavesAnOpenVolumeAlone(t *testing.T) {
	w := newWorld(t, "lvm")
	s, d := service(), w.disk()
	d.OnStop = localdisk.Discard
	_, err := s.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
	must(t, err)
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes["dh_"+domain+"_vda"].Open = true }))
	if err := s.Release(t.Context(), domain, []localdisk.Disk{d}, "shutdown"); !errors.Is(err, failure.Conflict) {
		t.Fatalf("got %v", err)
	}
	if !w.ready() {
		t.Error("an open volume was removed")
	}
}

func TestGivingUpNeedsAWord(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		after := w.wroteRaw()
		s := service()
		err := s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{})
		if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "--export") {
			t.Fatalf("got %v", err)
		}
		must(t, localdisk.MarkSaved(s.Layout, domain))
		if err := s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}); !errors.Is(err, failure.Conflict) {
			t.Fatalf("with saved memory: %v", err)
		}
		must(t, localdisk.ClearSaved(s.Layout, domain))
		if !w.ready() {
			t.Fatal("a refusal removed the copy")
		}
		out := w.path("export.qcow2")
		must(t, s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{Export: out}))
		w.tool("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", out, after)
		if w.ready() {
			t.Error("the copy is still there")
		}
		if err := s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{}); !errors.Is(err, failure.NotFound) {
			t.Errorf("second remove: %v", err)
		}
	})
}

func TestExportNeverOverwrites(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	out := w.path("precious")
	must(t, os.WriteFile(out, []byte("precious"), 0o600))
	if err := service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: out, Format: "raw"}); !errors.Is(err, failure.Conflict) {
		t.Fatalf("got %v", err)
	}
	if b, _ := os.ReadFile(out); string(b) != "precious" {
		t.Error("overwritten")
	}
	private := w.path("private.raw")
	must(t, service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: private, Format: "raw"}))
	if st, err := os.Stat(private); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: w.path("no/such/dir"), Format: "raw"}); failure.HintOf(err) == "" {
		t.Errorf("no way out: %v", err)
	}
	if rest, _ := filepath.Glob(w.path(".diskhook-export-*")); len(rest) != 0 {
		t.Errorf("left behind: %v", rest)
	}
}

// What tells how a copy was made goes with the copy, whoever takes it away; the
// domain's folder goes with the last of it, and never what is not about the disk.
func TestStatusGoesWithItsCopy(t *testing.T) {
	dir := "run/diskhook/status/" + domain
	for name, giveUp := range map[string]func(*world) error{
		"remove": func(*world) error {
			return service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true})
		},
		"release": func(w *world) error {
			d := w.disk()
			d.OnStop = localdisk.Discard
			return service().Release(t.Context(), domain, []localdisk.Disk{d}, "shutdown")
		},
		"remove what failed": func(w *world) error {
			must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
			must(t, os.MkdirAll(w.path(dir), 0o755))
			must(t, os.WriteFile(w.path(dir+"/vda.log"), nil, 0o644))
			if err := service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{}); !errors.Is(err, failure.NotFound) {
				t.Errorf("got %v", err)
			}
			return nil
		},
	} {
		for _, other := range []string{"", "vdb.json", "vda.3eca680a-d81e-4c67-8545-58820e36be4d.job"} {
			t.Run(name+" beside "+other, func(t *testing.T) {
				w := newWorld(t, "dir")
				d := w.disk()
				d.OnStop = localdisk.Discard
				_, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
				must(t, err)
				if _, err := os.Stat(w.path(dir + "/vda.json")); err != nil {
					t.Fatal(err)
				}
				if other != "" {
					must(t, os.WriteFile(w.path(dir+"/"+other), []byte("{}"), 0o644))
				}
				must(t, giveUp(w))
				left, err := filepath.Glob(w.path(dir + "*/*"))
				must(t, err)
				if other == "" {
					if _, err := os.Stat(w.path(dir)); err == nil {
						t.Errorf("the folder stayed, with %q", left)
					}
				} else if len(left) != 1 || filepath.Base(left[0]) != other {
					t.Errorf("left: %q", left)
				}
			})
		}
	}
}

func TestStatusGoesWithWhatGCTakes(t *testing.T) {
	w := newWorld(t, "dir")
	w.interrupted()
	must(t, w.process("gc"))
	if _, err := os.Stat(w.path("run/diskhook/status/" + domain)); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Metadata that name a copy of which nothing is known are no leave to start over.
func TestRecreatingAForgottenCopyNeedsAWord(t *testing.T) {
	w := newWorld(t, "dir")
	d := w.disk()
	d.Copy = "3eca680a-d81e-4c67-8545-58820e36be4d"
	s := service()
	err := s.Recreate(t.Context(), d, localdisk.GiveUp{}, localdisk.Waiting{})
	if !errors.Is(err, failure.NotFound) || !strings.Contains(failure.HintOf(err), "--discard-guest-data vm vda") || w.ready() {
		t.Fatalf("got %v", err)
	}
	must(t, s.Recreate(t.Context(), d, localdisk.GiveUp{DiscardGuestData: true}, localdisk.Waiting{}))
	w.same(w.content(), w.flat)
}

// A resize that asks for more than one that crashed gets what it asked for.
func TestResizeAfterACrashedOne(t *testing.T) {
	w := newWorld(t, "lvm")
	_, err := w.hook()
	must(t, err)
	s := service()
	t.Setenv("DISKHOOK_FAILPOINT", "resize.extended=error")
	if _, err := s.Resize(t.Context(), domain, "vda", 8<<20); err == nil {
		t.Fatal("the failpoint did not fire")
	}
	t.Setenv("DISKHOOK_FAILPOINT", "")
	p, err := s.Resize(t.Context(), domain, "vda", 16<<20)
	must(t, err)
	if p.Size != 16<<20 {
		t.Errorf("size %d", p.Size)
	}
	w.same(w.stable(), w.flat)
}

// With on-stop=discard another leaf retires the old copy; what is complete
// under the new leaf's name is somebody's data.
func TestRetiringOverwritesNothing(t *testing.T) {
	const image, older, newer = "c9865ca8-f6d2-4363-bec2-af870a87a819", "1dfad482-c65c-436c-aa59-87e020b63302", "b3335e60-6d27-46e0-bed8-50e75cca6786"
	for _, backend := range []string{"dir", "lvm"} {
		t.Run(backend, func(t *testing.T) {
			w := newWorld(t, backend)
			d := w.disk()
			d.Image, d.Volume, d.OnStop = image, older, localdisk.Discard
			start := func(d localdisk.Disk) error {
				_, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
				return err
			}
			must(t, start(d))
			next := d
			next.Volume = newer
			if backend == "dir" {
				must(t, os.WriteFile(w.path("var/lib/diskhook/local/"+newer+".raw"), []byte("precious"), 0o600))
			} else {
				must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) {
					g.Volumes[newer] = &lvmtest.Volume{UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef", Size: 4 << 20}
				}))
			}
			if err := start(next); !errors.Is(err, failure.Conflict) {
				t.Fatalf("got %v", err)
			}
			must(t, start(d)) // nothing was given up
			if backend == "dir" {
				must(t, os.Remove(w.path("var/lib/diskhook/local/"+newer+".raw")))
			} else {
				must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { delete(g.Volumes, newer) }))
			}
			must(t, start(next))
			if entries, err := service().List(t.Context()); err != nil || len(entries) != 1 || entries[0].Receipt.Volume != newer {
				t.Errorf("left: %+v, %v", entries, err)
			}
		})
	}
}
