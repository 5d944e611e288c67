// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/progress"
)

func TestReadyPathOfFourDisksCostsTwoCommands(t *testing.T) {
	for _, backend := range []string{"lvm", "lvmthin"} {
		t.Run(backend, func(t *testing.T) {
			w := newWorld(t, backend)
			var disks []localdisk.Disk
			for _, target := range []string{"vda", "vdb", "vdc", "vdd"} {
				d := w.disk()
				d.Target = target
				disks = append(disks, d)
			}
			_, err := service().Fulfil(t.Context(), disks, localdisk.Waiting{})
			must(t, err)
			w.reboot()
			must(t, os.Remove(w.path("lvm/log")))
			placements, err := service().Fulfil(t.Context(), disks, localdisk.Waiting{})
			must(t, err)
			if len(placements) != 4 || !placements[3].Block {
				t.Errorf("placements %+v", placements)
			}
			name := func(target string) string { return "ovirt-local/dh_" + domain + "_" + target }
			want := []string{
				"fullreport ovirt-local",
				"lvchange -a y -K " + strings.Join([]string{name("vda"), name("vdb"), name("vdc"), name("vdd")}, " "),
			}
			if diff := cmp.Diff(want, lvmtest.Log(w.path("lvm"))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The tags are oVirt's, so that its hook reads our volumes; the mark goes and
// ours come in one command, after everything else.
func TestCommandsOfAFirstStart(t *testing.T) {
	w := newWorld(t, "lvm")
	_, err := w.hook()
	must(t, err)
	lv := "ovirt-local/dh_" + domain + "_vda"
	want := []string{
		"lvcreate -n dh_" + domain + "_vda -L 3145728b --addtag UPDATING --addtag VM_" + domain +
			" --addtag PU_00000000-0000-0000-0000-000000000000 -a y -k y -K ovirt-local",
		"lvchange --addtag DH_v1 --addtag DH_target_vda --addtag DH_machine_0123456789abcdef0123456789abcdef --deltag UPDATING " + lv,
		"lvchange -a y -K " + lv,
	}
	var got []string
	for _, line := range lvmtest.Log(w.path("lvm")) {
		if !strings.HasPrefix(line, "fullreport") {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 2 {
		t.Errorf("volumes %v", g.Volumes)
	}
}

// Stale data of an earlier owner (the fake group is full of 0xAA) must not
// show through holes nor in the tail of a linear volume.
func TestLinearVolumeShowsNothingOfEarlierOwners(t *testing.T) {
	w := newWorld(t, "lvm")
	_, err := w.hook()
	must(t, err)
	b, err := os.ReadFile(w.content())
	must(t, err)
	if len(b) != 4<<20 {
		t.Fatalf("volume of %d bytes", len(b))
	}
	if strings.Contains(string(b), "\xaa\xaa") {
		t.Error("old data shows through")
	}
	w.same(w.stable(), w.flat)
}

func TestTwoStartsAtOnceCopyOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		log := w.path("failpoints")
		t.Setenv("DISKHOOK_FAILPOINT_LOG", log)
		t.Setenv("DISKHOOK_FAILPOINT", "fill.created=sleep:500ms")
		var starts sync.WaitGroup
		errs := make([]error, 3)
		for i := range errs {
			starts.Go(func() { _, errs[i] = w.hook() })
		}
		starts.Wait()
		must(t, errors.Join(errs...))
		w.same(w.stable(), w.flat)
		b, err := os.ReadFile(log)
		must(t, err)
		if n := strings.Count(string(b), "fill.created"); n != 1 {
			t.Errorf("%d copies were made", n)
		}
	})
}

func TestDeadlinePassesAndTheCopyGoesOn(t *testing.T) {
	w := newWorld(t, "dir")
	t.Setenv("DISKHOOK_FAILPOINT", "fill.verified=sleep:2s")
	s := service()
	_, err := s.Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Deadline: 500 * time.Millisecond})
	if !errors.Is(err, failure.Temporary) || !strings.Contains(failure.Line(err), "the copy goes on") || !strings.Contains(failure.HintOf(err), "diskhook local status vm") {
		t.Fatalf("got %v, hint %q", err, failure.HintOf(err))
	}
	w.awaitUnlocked()
	if !w.ready() {
		t.Error("the copy did not go on")
	}
	t.Setenv("DISKHOOK_FAILPOINT", "")
	_, err = w.hook()
	must(t, err)
}

func TestWaiterHearsOfProgressAndTheStatusFileIsForAll(t *testing.T) {
	w := newWorld(t, "dir")
	var states []progress.State
	_, err := service().Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Notify: func(_ localdisk.Disk, s progress.Status) {
		states = append(states, s.State)
	}})
	must(t, err)
	if len(states) == 0 || states[len(states)-1] != progress.Ready {
		t.Errorf("states %v", states)
	}
	path := w.path("run/diskhook/status/" + domain + "/vda.json")
	st, err := os.Stat(path)
	must(t, err)
	if st.Mode().Perm() != 0o644 {
		t.Errorf("mode %v", st.Mode())
	}
	if jobs, _ := filepath.Glob(filepath.Dir(path) + "/*.job"); len(jobs) != 0 {
		t.Errorf("jobs left: %v", jobs)
	}
}

func TestCancelStopsTheCopyAndLeavesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		s := service()
		s.Config.Local.Rate = 1 // not passed on: the copy process has its own
		t.Setenv("DISKHOOK_FAILPOINT", "fill.created=sleep:1s")
		_, err := s.Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Deadline: 300 * time.Millisecond})
		if !errors.Is(err, failure.Temporary) {
			t.Fatalf("got %v", err)
		}
		if entries, err := s.List(t.Context()); err != nil || len(entries) != 1 || entries[0].DomainName != "vm" || !entries[0].Busy {
			t.Errorf("meanwhile: %+v, %v", entries, err)
		}
		must(t, s.Cancel(t.Context(), domain, "vda"))
		if err := s.Cancel(t.Context(), domain, "vda"); !errors.Is(err, failure.NotFound) {
			t.Errorf("second cancel: %v", err)
		}
		t.Setenv("DISKHOOK_FAILPOINT", "")
		entries, err := s.List(t.Context())
		must(t, err)
		if len(entries) != 0 {
			t.Errorf("left: %+v", entries)
		}
		_, err = w.hook()
		must(t, err)
		w.same(w.stable(), w.flat)
	})
}

func TestSourceThatChangesMeanwhileIsNoCopy(t *testing.T) {
	w := newWorld(t, "dir")
	t.Setenv("DISKHOOK_FAILPOINT", "transfer.flushed=sleep:1s")
	go func() {
		time.Sleep(600 * time.Millisecond)
		_ = os.Chtimes(w.path("base.raw"), time.Now(), time.Now().Add(time.Hour))
	}()
	_, err := w.hook()
	if err == nil || !strings.Contains(err.Error(), "changed while it was copied") {
		t.Fatalf("got %v", err)
	}
	if w.ready() {
		t.Error("a copy of two sources is ready")
	}
}

func TestRefusalsCreateNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(*world, *localdisk.Service, *localdisk.Disk)
		kind    error
		says    string
	}{
		"group full": {func(w *world, _ *localdisk.Service, d *localdisk.Disk) {
			must(w.t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Size = 130 << 20 }))
		}, failure.NoSpace, "vgextend ovirt-local"},
		"reserve":                   {func(w *world, _ *localdisk.Service, _ *localdisk.Disk) { w.t.Setenv("DISKHOOK_TEST_RESERVE", "1") }, failure.NoSpace, "reserve"},
		"no group":                  {func(w *world, s *localdisk.Service, d *localdisk.Disk) { s.Config.Local.VG = "gone" }, failure.Precondition, "vgcreate gone"},
		"source missing":            {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { must(w.t, os.Remove(w.source[2].Path)) }, failure.NotFound, "base.raw"},
		"backing file not declared": {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { d.Source = d.Source[:1] }, failure.Precondition, "none is declared"},
		"outside of roots":          {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { d.Source[0].Path = "/etc/passwd" }, failure.Precondition, "roots"},
		"no source":                 {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { d.Source = nil }, failure.Usage, ""},
		"bad domain":                {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { d.Domain = "../../etc" }, failure.Usage, "domain uuid"},
		"bad target":                {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { d.Target = "-rf" }, failure.Usage, "target"},
		"bad backend":               {func(w *world, _ *localdisk.Service, d *localdisk.Disk) { d.Backend = "zfs" }, failure.Usage, "dir, lvm, lvmthin"},
		"broken receipt": {func(w *world, _ *localdisk.Service, d *localdisk.Disk) {
			path := w.path("var/lib/diskhook/receipts/" + domain + "/vda.json")
			must(w.t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(w.t, os.WriteFile(path, []byte("{"), 0o644))
		}, failure.Precondition, "not understood"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "lvm")
			s, d := service(), w.disk()
			tc.prepare(w, s, &d)
			_, err := s.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
			if !errors.Is(err, tc.kind) || !strings.Contains(failure.Line(err), tc.says) {
				t.Fatalf("got %q, want %v and %q", failure.Line(err), tc.kind, tc.says)
			}
			g, err := lvmtest.Load(w.path("lvm"))
			must(t, err)
			if len(g.Volumes) != 1 {
				t.Errorf("created: %v", g.Volumes)
			}
			if _, err := os.Lstat(w.stable()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the stable path is there: %v", err)
			}
		})
	}
}

// Of several disks that are fulfilled together, one refusal leaves none.
func TestAllOrNothing(t *testing.T) {
	w := newWorld(t, "lvm")
	good, bad := w.disk(), w.disk()
	_, err := service().Fulfil(t.Context(), []localdisk.Disk{good}, localdisk.Waiting{})
	must(t, err)
	w.reboot()
	bad.Target, bad.Create = "vdb", false
	if _, err := service().Fulfil(t.Context(), []localdisk.Disk{good, bad}, localdisk.Waiting{}); !errors.Is(err, failure.Precondition) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(w.stable()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("one disk was published")
	}
	g, _ := lvmtest.Load(w.path("lvm"))
	if g.Volumes["dh_"+domain+"_vda"].Active {
		t.Error("one disk is active")
	}
}

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
		_, err := w.hook()
		must(t, err)
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
		after := w.path("after.raw")
		w.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", w.stable(), after)
		s := service()
		err = s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{})
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
	if err := service().Export(t.Context(), domain, "vda", out, "raw", nil); !errors.Is(err, failure.Conflict) {
		t.Fatalf("got %v", err)
	}
	if b, _ := os.ReadFile(out); string(b) != "precious" {
		t.Error("overwritten")
	}
	private := w.path("private.raw")
	must(t, service().Export(t.Context(), domain, "vda", private, "raw", nil))
	if st, err := os.Stat(private); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := service().Export(t.Context(), domain, "vda", w.path("no/such/dir"), "raw", nil); failure.HintOf(err) == "" {
		t.Errorf("no way out: %v", err)
	}
	if rest, _ := filepath.Glob(w.path(".diskhook-export-*")); len(rest) != 0 {
		t.Errorf("left behind: %v", rest)
	}
}

func TestLostReceiptsAreAdoptedOnTheOperatorsWord(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		_, err := w.hook()
		must(t, err)
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
		after := w.path("after.raw")
		w.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", w.stable(), after)
		w.reboot()
		must(t, os.RemoveAll(w.path("var/lib/diskhook/receipts")))
		if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "diskhook local adopt vm vda") {
			t.Fatalf("got %v", err)
		}
		must(t, service().Adopt(t.Context(), w.disk()))
		_, err = w.hook()
		must(t, err)
		w.same(w.stable(), after)
	})
}

// A volume that oVirt's own hook made, as it makes it, is taken over with its
// guest's data.
func TestVolumeOfOVirtsHookIsAdopted(t *testing.T) {
	const image, volume = "c9865ca8-f6d2-4363-bec2-af870a87a819", "1dfad482-c65c-436c-aa59-87e020b63302"
	w := newWorld(t, "lvm")
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) {
		g.Volumes[volume] = &lvmtest.Volume{UUID: "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef", Size: 4 << 20, Tags: []string{"VM_" + domain, "IU_" + image, "PU_00000000-0000-0000-0000-000000000000"}}
	}))
	must(t, os.WriteFile(w.path("lvm/"+volume+".img"), []byte(strings.Repeat("guest", 4<<20/5)+"data"), 0o600))
	d := w.disk()
	d.Image, d.Volume = image, volume
	placements, err := service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
	must(t, err)
	if placements[0].Path != w.path("dev/ovirt-local/"+volume) {
		t.Errorf("path %s", placements[0].Path)
	}
	b, err := os.ReadFile(w.path("lvm/" + volume + ".img"))
	must(t, err)
	if !strings.HasPrefix(string(b), "guestguest") {
		t.Error("the guest's data was touched")
	}
	var r localdisk.Receipt
	data, err := os.ReadFile(w.path("var/lib/diskhook/receipts/" + domain + "/" + image + ".json"))
	must(t, err)
	must(t, json.Unmarshal(data, &r))
	if !r.Used || r.Copy != "abcdef-abcd-abcd-abcd-abcd-abcd-abcdef" {
		t.Errorf("receipt %+v", r)
	}
}

// Disks that fit one by one, but not together, are refused before the first.
func TestRoomIsAskedForAllDisksTogether(t *testing.T) {
	w := newWorld(t, "lvm")
	must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Size = 128<<20 + 4<<20 }))
	one, two := w.disk(), w.disk()
	two.Target = "vdb"
	for name, try := range map[string]func() error{
		"room": func() error { return service().Room(t.Context(), []localdisk.Disk{one, two}) },
		"fulfil": func() error {
			_, err := service().Fulfil(t.Context(), []localdisk.Disk{one, two}, localdisk.Waiting{})
			return err
		},
	} {
		if err := try(); !errors.Is(err, failure.NoSpace) || !strings.Contains(failure.HintOf(err), "vgextend") {
			t.Errorf("%s: %v", name, err)
		}
	}
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 1 {
		t.Errorf("created: %v", g.Volumes)
	}
	must(t, service().Room(t.Context(), []localdisk.Disk{one}))
}

// A dry run shows what a start, and what prestage, would do; and does nothing.
func TestCommandsShowAndDoNothing(t *testing.T) {
	w := newWorld(t, "lvm")
	s := service()
	show := func() (start, fill []string) {
		observed, err := s.Observe(t.Context(), []localdisk.Disk{w.disk()})
		must(t, err)
		decision := localdisk.Decide(observed[0])
		return s.Commands(t.Context(), observed[0], decision), s.FillCommands(t.Context(), observed[0], decision)
	}
	contains := func(lines []string, words ...string) {
		t.Helper()
		for i, word := range words {
			if i >= len(lines) || !strings.Contains(lines[i], word) {
				t.Fatalf("lines %q, want %q", lines, words)
			}
		}
		if len(lines) != len(words) {
			t.Fatalf("lines %q, want %q", lines, words)
		}
	}
	start, fill := show()
	contains(fill, "lvm lvcreate", "qemu-img convert", "# flush", "write ")
	contains(start, "lvm lvcreate", "qemu-img convert", "# flush", "write ", "(used)", "link ")
	g, err := lvmtest.Load(w.path("lvm"))
	must(t, err)
	if len(g.Volumes) != 1 {
		t.Errorf("created: %v", g.Volumes)
	}
	_, err = w.hook()
	must(t, err)
	start, fill = show()
	contains(start, "lvm lvchange", "link ")
	contains(fill)
}

// A copy that was made before its domain was bound, and whose source was
// written to since, is made again; one that a guest used is the truth.
func TestUnusedCopyOfAChangedSourceIsMadeAgain(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		w := newWorld(t, backend)
		s, disks := service(), []localdisk.Disk{w.disk()}
		must(t, s.Prestage(t.Context(), disks, localdisk.Waiting{}))
		w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 2M 64k", w.source[0].Path)
		w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
		observed, err := s.ObserveSources(t.Context(), disks)
		must(t, err)
		if !observed[0].Stale || localdisk.Decide(observed[0]).Action != localdisk.Replace {
			t.Errorf("observed %+v", observed[0])
		}
		must(t, s.Prestage(t.Context(), disks, localdisk.Waiting{}))
		_, err = w.hook()
		must(t, err)
		w.same(w.stable(), w.flat)

		w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x55 2M 64k", w.source[0].Path)
		must(t, s.Prestage(t.Context(), disks, localdisk.Waiting{}))
		w.same(w.stable(), w.flat)
	})
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

func TestDamagedReceiptHidesNoOther(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	other := w.path("var/lib/diskhook/receipts/b07a37de-95d6-4682-84cd-c8c9201327e3")
	must(t, os.MkdirAll(other, 0o755))
	must(t, os.WriteFile(other+"/vda.json", []byte("{"), 0o644))
	entries, err := service().List(t.Context())
	must(t, err)
	if len(entries) != 2 || entries[0].Problem != "" || !strings.Contains(entries[1].Problem, "not understood") {
		t.Errorf("entries %+v", entries)
	}
	receipts, err := localdisk.Receipts(service().Layout, "")
	if len(receipts) != 1 || !errors.Is(err, failure.Precondition) {
		t.Errorf("receipts %v, %v", receipts, err)
	}
}

func TestCopyWithoutItsSidecarIsNoDeadEnd(t *testing.T) {
	w := newWorld(t, "dir")
	_, err := w.hook()
	must(t, err)
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 512k 64k", w.stable())
	after := w.path("after.raw")
	w.tool("cp", w.content(), after)
	w.reboot()
	must(t, os.Remove(strings.TrimSuffix(w.content(), ".raw")+".json"))
	s := service()
	if _, err := w.hook(); err == nil || !strings.Contains(err.Error(), "diskhook local adopt vm vda") {
		t.Fatalf("start: %v", err)
	}
	for what, err := range map[string]error{
		"remove": s.Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}),
		"export": s.Export(t.Context(), domain, "vda", w.path("out.raw"), "raw", nil),
	} {
		if !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "adopt") {
			t.Errorf("%s: %v", what, err)
		}
	}
	entries, err := s.List(t.Context())
	must(t, err)
	if len(entries) != 1 || entries[0].Problem == "" {
		t.Errorf("list: %+v", entries)
	}
	must(t, s.Adopt(t.Context(), w.disk()))
	_, err = w.hook()
	must(t, err)
	w.same(w.stable(), after)
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
