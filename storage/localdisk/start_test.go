// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
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

// Stale data of an earlier owner (the fake group is full of 0xAA) must not
// show through holes nor in the tail of a linear volume, nor of a thin one whose
// pool does not zero.
func TestVolumeShowsNothingOfEarlierOwners(t *testing.T) {
	for _, backend := range []string{"lvm", "lvmthin"} {
		for _, world := range []func(*testing.T, string) *world{newWorld, newCache} {
			w := world(t, backend)
			must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes["pool0"].KeepsOld = true }))
			_, err := w.hook()
			must(t, err)
			b, err := os.ReadFile(w.content())
			must(t, err)
			if len(b) != 4<<20 {
				t.Fatalf("volume of %d bytes", len(b))
			}
			if strings.Contains(string(b), "\xaa\xaa") {
				t.Errorf("%s: old data shows through", backend)
			}
			w.same(w.stable(), w.flat)
		}
	}
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
		t.Setenv("DISKHOOK_FAILPOINT", "fill.created=sleep:3s")
		_, err := s.Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Deadline: 2 * time.Second})
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

// A copy process that was just started has only its job: it is waited for, and
// asked until it has heard.
func TestCancelStopsACopyThatBegins(t *testing.T) {
	w := newWorld(t, "dir")
	dir := w.path("run/diskhook/status/" + domain)
	must(t, errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(w.path("run/diskhook/lock"), 0o755)))
	job := filepath.Join(dir, "vda."+uuid.NewString()+".job")
	must(t, os.WriteFile(job, nil, 0o600))
	cancelled := make(chan error, 1)
	go func() { cancelled <- service().Cancel(t.Context(), domain, "vda") }()
	time.Sleep(200 * time.Millisecond)
	held, err := lock.Acquire(t.Context(), w.path("run/diskhook/lock"), "local-"+domain+"-vda")
	must(t, err)
	must(t, os.Remove(job))
	asked := 0
	for range 400 {
		if os.Remove(filepath.Join(dir, "vda.cancel")) == nil { // as one left from before
			asked++
		}
		if asked == 2 {
			held.Release()
			must(t, <-cancelled)
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("it was not asked to stop: %v", <-cancelled)
}

// A copy that is cancelled is so for all who wait for it: none begins it anew.
func TestCancelStopsAllWhoWait(t *testing.T) {
	w := newWorld(t, "dir")
	t.Setenv("DISKHOOK_FAILPOINT", "fill.created=sleep:2s")
	ended := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := service().Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{Deadline: time.Minute})
			ended <- err
		}()
	}
	for range 400 {
		if files, _ := filepath.Glob(w.path("var/lib/diskhook/local/*.partial")); len(files) > 0 {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	must(t, service().Cancel(t.Context(), domain, "vda"))
	for range 3 {
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "its copy was cancelled") {
			t.Errorf("a start ended with %v", err)
		}
	}
	if w.ready() {
		t.Error("it was copied nevertheless")
	}
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
		"reserve": {func(w *world, _ *localdisk.Service, _ *localdisk.Disk) {
			w.t.Setenv("DISKHOOK_TEST_RESERVE", strconv.Itoa(1<<40))
		}, failure.NoSpace, "reserve"},
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
