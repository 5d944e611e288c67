// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// Another place for copies is for those that are made from now on. The others
// stay where they are, and are found there.
func TestCopyStaysWhereItWasMade(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
	want, err := os.ReadFile(w.stable())
	must(t, err)
	w.reboot()

	other := w.path("other")
	t.Setenv("DISKHOOK_TEST_DIR", other)
	_, err = w.hook()
	must(t, err)
	got, err := os.ReadFile(w.stable())
	must(t, err)
	if string(got) != string(want) {
		t.Error("the guest sees other data")
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is in the other place: %v", err)
	}
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 1 || entries[0].Copy.Path != w.content() || entries[0].Problem != "" {
		t.Errorf("listed: %+v", entries)
	}
	must(t, service().Release(t.Context(), domain, []localdisk.Disk{w.disk()}, ""))
	must(t, service().Export(t.Context(), domain, "vda", localdisk.ExportOptions{To: w.path("exported.raw"), Format: "raw"}))
	must(t, service().Adopt(t.Context(), w.disk()))

	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	if _, err := os.Stat(w.content()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed, and there: %v", err)
	}
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
	if to, err := os.Readlink(w.stable()); err != nil || to != other+"/dh_"+domain+"_vda.raw" {
		t.Errorf("the new copy is %s, %v", to, err)
	}
}

// A copy that no guest has used, of a source that changed, is made again where
// copies go now.
func TestCopyThatIsMadeAgainMoves(t *testing.T) {
	w := newWorld(t, "dir")
	must(t, service().Prestage(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}))
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 0 64k", w.source[0].Path)
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
	t.Setenv("DISKHOOK_TEST_DIR", w.path("other"))
	if err := service().Prestage(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}); err != nil {
		t.Fatal(failure.Line(err))
	}
	_, err := w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
	if _, err := os.Stat(w.content()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old one is there: %v", err)
	}
}

// leftIn is a world whose copy was interrupted at a point, and where copies go
// to another directory since.
func leftIn(t *testing.T, point string) (w *world, other string) {
	t.Helper()
	w = newWorld(t, "dir")
	if _, err := w.hook("DISKHOOK_FAILPOINT=" + point + "=kill"); err == nil {
		t.Fatal("the failpoint did not fire")
	}
	w.awaitUnlocked()
	other = w.path("other")
	t.Setenv("DISKHOOK_TEST_DIR", other)
	return w, other
}

// only fails unless these are the files of a directory.
func (w *world) only(dir string, want ...string) {
	w.t.Helper()
	files, err := filepath.Glob(dir + "/*")
	must(w.t, err)
	for i := range want {
		want[i] = filepath.Join(dir, "dh_"+domain+"_vda"+want[i])
	}
	if diff := cmp.Diff(want, files); diff != "" {
		w.t.Errorf("in %s: %s", dir, diff)
	}
}

// A copy that was interrupted is gone on with where it is, and one of which that
// cannot be is made again where copies go now. No second one is made beside it.
func TestUnfinishedCopyIsFoundWhereItIs(t *testing.T) {
	for point, tc := range map[string]struct{ problem, says string }{
		"fill.verified": {"the next start goes on with it (`diskhook local prestage vm/vda` does now), `diskhook local remove vm vda` gives it up", "go on with the copy that was interrupted where it is, in "},
		"fill.created":  {"the next start removes it, as does `diskhook local remove " + domain + " vda`", "remove an unfinished copy"},
	} {
		t.Run(point, func(t *testing.T) {
			w, other := leftIn(t, point)
			entries, err := service().List(t.Context())
			must(t, err)
			want := "unfinished, nobody works on it, and copies go to " + other + " now; " + tc.problem
			if len(entries) != 1 || entries[0].Copy.Path != w.content()+".partial" || entries[0].Problem != want {
				t.Errorf("listed: %+v", entries)
			}
			observed, err := service().Observe(t.Context(), []localdisk.Disk{w.disk()})
			must(t, err)
			decision := localdisk.Decide(observed[0])
			if says := observed[0].Describe(decision); !strings.Contains(says, tc.says) {
				t.Errorf("plan: %s", says)
			}
			shown := strings.Join(service().FillCommands(t.Context(), observed[0], decision), "\n")
			if decision.Action == localdisk.Replace && (!strings.Contains(shown, "remove "+w.content()+".partial\ncreate "+other+"/") || strings.Contains(shown, "create "+w.path("var"))) {
				t.Errorf("shown:\n%s", shown)
			}

			_, err = w.hook()
			must(t, err)
			w.same(w.stable(), w.flat)
			home, left := filepath.Dir(w.content()), other
			if decision.Action == localdisk.Replace {
				home, left = other, home
			}
			w.only(home, ".json", ".raw")
			w.only(left)
			if r := w.receipt(); r.Home != home {
				t.Errorf("the receipt says %s", r.Home)
			}
		})
	}
}

// A place from which nothing is heard, as a file without a writer is one, holds
// nobody beyond what he waits for, and is named.
func TestPlaceThatDoesNotAnswer(t *testing.T) {
	w, _ := leftIn(t, "fill.verified")
	sidecar := strings.TrimSuffix(w.content(), ".raw") + ".json"
	must(t, os.Remove(sidecar))
	must(t, unix.Mkfifo(sidecar, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := service().List(ctx)
	if place := "dir " + filepath.Dir(sidecar); !errors.Is(err, command.ErrNoAnswer) || !strings.Contains(err.Error(), place) {
		t.Errorf("listed: %v", err)
	}
}

func TestUnfinishedCopyElsewhereIsGivenUp(t *testing.T) {
	for name, giveUp := range map[string]func(*world) error{
		"remove": func(w *world) error { return service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{}) },
		"unplug": func(w *world) error { return service().RemoveUnfinished(t.Context(), w.disk()) },
		"gc":     func(w *world) error { return w.process("gc") },
	} {
		t.Run(name, func(t *testing.T) {
			w, other := leftIn(t, "fill.verified")
			must(t, giveUp(w))
			w.only(filepath.Dir(w.content()))
			if left, _ := filepath.Glob(w.path("var/lib/diskhook/cursors/*")); left != nil {
				t.Errorf("left: %v", left)
			}
			// the place is forgotten with the last that was in it
			want := "taken: copies go to " + other + " now, and none is left in it\n"
			if got := decisions(t)["home"]; got != want {
				t.Errorf("judged %q", got)
			}
			must(t, w.process("gc"))
			if got := decisions(t)["home"]; got != "" {
				t.Errorf("judged %q", got)
			}
		})
	}
}

// So are volumes, in the group where they were begun.
func TestUnfinishedVolumeElsewhereIsGivenUp(t *testing.T) {
	for _, backend := range []string{"lvm", "lvmthin"} {
		for name, giveUp := range map[string]func(*world) error{
			"remove": func(w *world) error { return service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{}) },
			"gc":     func(w *world) error { return w.process("gc", "DISKHOOK_TEST_WIPE=discard") },
		} {
			t.Run(backend+" "+name, func(t *testing.T) {
				w := newWorld(t, backend)
				w.interrupted()
				t.Setenv("DISKHOOK_TEST_VG", "other")
				entries, err := service().List(t.Context())
				must(t, err)
				if len(entries) != 1 || !strings.Contains(entries[0].Problem, "unfinished, nobody works on it, and copies go to other now; ") {
					t.Errorf("listed: %+v", entries)
				}
				must(t, giveUp(w))
				g, err := lvmtest.Load(w.path("lvm"))
				must(t, err)
				if len(g.Volumes) != 1 { // the pool
					t.Errorf("left: %v", g.Volumes)
				}
				must(t, w.process("gc"))
				if all := decisions(t); all["home"] != "" || all["cursor"] != "" {
					t.Errorf("judged %+v", all)
				}
			})
		}
	}
}

// What cannot be looked at is not said to be gone: what tells of a copy there
// stays, until it is back or somebody says that it never will be.
func TestFilesAboutCopiesThatAreAway(t *testing.T) {
	t.Run("not there", func(t *testing.T) { filesOfAway(t, false) })
	t.Run("not mounted", func(t *testing.T) { filesOfAway(t, true) })
}

func filesOfAway(t *testing.T, mountpoint bool) {
	w, other := leftIn(t, "fill.verified")
	dir := filepath.Dir(w.content())
	must(t, os.Rename(dir, dir+".away"))
	away := "dir " + dir + ": copies were made there, and it is not there now"
	if mountpoint {
		must(t, os.Mkdir(dir, 0o711))
		away = "dir " + dir + ": copies were made there, and another directory is in its place now"
	}
	kept := "kept: whether its copy is there is not known: " + away + "\n"
	all := decisions(t)
	if all["cursor"] != kept || !strings.HasPrefix(all["status"], kept) || strings.Contains(all["status"], "taken") {
		t.Errorf("judged %+v", all)
	}
	if want := "kept: " + away + "; mount it, or forget it if it is gone for good\n"; all["home"] != want {
		t.Errorf("judged %q", all["home"])
	}
	must(t, w.process("gc"))
	told, err := service().Away(t.Context())
	must(t, err)
	if diff := cmp.Diff([]string{away}, told); diff != "" {
		t.Error(diff)
	}
	if mountpoint {
		must(t, os.Remove(dir))
	}
	must(t, os.Rename(dir+".away", dir))
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), w.flat)
	w.only(dir, ".json", ".raw")
	w.only(other)
}

// A start does not wait for a place that is away. What it finds there later is
// not the disk, whatever became of that.
func TestSecondCopyWhileTheFirstWasAway(t *testing.T) {
	w, other := leftIn(t, "fill.verified")
	dir := filepath.Dir(w.content())
	must(t, os.Rename(dir, dir+".away"))
	_, err := w.hook()
	must(t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
	must(t, os.Rename(dir+".away", dir))
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 2 || entries[0].Problem+entries[1].Problem != "unfinished, nobody works on it, and copies go to "+other+" now; the disk has another copy, `diskhook local gc` shows why this one may go" {
		t.Errorf("listed: %+v", entries)
	}
	before := w.receipt()
	must(t, w.process("gc"))
	w.only(dir)
	w.only(other, ".json", ".raw")
	if diff := cmp.Diff(before, w.receipt()); diff != "" {
		t.Error(diff)
	}
	must(t, w.process("gc"))
	if got := decisions(t)["home"]; got != "" {
		t.Errorf("judged %q", got)
	}
}

// Templates that are in a place where no copies go any more go as others do.
func TestTemplateWhereNoCopiesGo(t *testing.T) {
	w := newLying(t, "dir")
	w.lies(w.disk())
	template := w.templates()[0].Path
	t.Setenv("DISKHOOK_TEST_DIR", w.path("other"))
	if got := decisions(t)["template"]; got != "kept: 1 copies lie on it, and are nothing without it\n" {
		t.Errorf("judged %q", got)
	}
	w.reboot()
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	must(t, w.process("gc"))
	if _, err := os.Stat(template); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the template: %v", err)
	}
	must(t, w.process("gc"))
	if all := decisions(t); all["home"] != "" || all["template"] != "" {
		t.Errorf("left: %+v", all)
	}
}
