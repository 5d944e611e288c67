// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
)

// newShared is a world with templates, whose copies lie on a file system that
// shares blocks.
func newShared(t *testing.T) *world {
	t.Helper()
	w := newCache(t, "dir")
	dir, image := w.path("var/lib/diskhook/local"), w.path("xfs")
	must(t, os.MkdirAll(dir, 0o711))
	w.tool("truncate", "-s", "400M", image)
	w.tool("mkfs.xfs", "-q", "-m", "reflink=1", image)
	w.tool("mount", "-o", "loop", image, dir)
	t.Cleanup(func() { w.tool("umount", dir) })
	return w
}

func (w *world) used() int64 {
	var st unix.Statfs_t
	must(w.t, unix.Statfs(w.path("var/lib/diskhook/local"), &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

func TestFilesShareTheBlocksOfTheirTemplate(t *testing.T) {
	w := newShared(t)
	before := w.used()
	for i := range 4 {
		w.started(w.numbered(i))
	}
	all := w.templates()
	if len(all) != 1 || all[0].State != localdisk.Ready || all[0].Clones != 4 || all[0].From != w.path("base.raw") || all[0].Kept != "" {
		t.Fatalf("templates %+v", all)
	}
	w.same(all[0].Path, w.path("base.raw"))
	st, err := os.Stat(all[0].Path)
	must(t, err)
	if st.Mode().Perm() != 0o400 {
		t.Errorf("mode %v", st.Mode())
	}
	unix.Sync()
	files, err := filepath.Glob(w.path("var/lib/diskhook/local/*.raw"))
	must(t, err)
	var sum int64
	for _, path := range files {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		sum += st.Blocks * 512
	}
	// Four times the 2 MiB of the base, less what was copied onto it.
	if shared := sum - (w.used() - before); len(files) != 5 || shared < 6<<20 {
		t.Errorf("%d files share %d bytes", len(files), shared)
	}
	// What a guest writes is its own.
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x77 0 64k", w.path("run/diskhook/disks/"+w.numbered(0).Domain+"/vda"))
	w.same(w.path("run/diskhook/disks/"+w.numbered(1).Domain+"/vda"), w.flat)
	w.same(all[0].Path, w.path("base.raw"))
	entries, err := service().List(t.Context())
	must(t, err)
	for _, e := range entries {
		if e.Problem != "" || e.Copy.Origin != all[0].Name {
			t.Errorf("entry %+v", e)
		}
	}
	// A clone does not need its template.
	must(t, service().EvictTemplate(t.Context(), all[0].Name, localdisk.WipeZero))
	w.same(w.path("run/diskhook/disks/"+w.numbered(1).Domain+"/vda"), w.flat)
	if left, _ := filepath.Glob(w.path("var/lib/diskhook/local/dhbase_*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSharedTemplateSurvivesACrashAtEveryPoint(t *testing.T) {
	probe := newShared(t)
	for _, point := range passed(t, probe, func() { _, err := probe.hook(); must(t, err) }) {
		t.Run(point, func(t *testing.T) {
			w := newShared(t)
			w.crash(point)
			if w.ready() {
				w.same(w.content(), w.flat)
			}
			for _, template := range w.templates() {
				if template.State == localdisk.Ready {
					w.same(template.Path, w.path("base.raw"))
				}
			}
			w.started(w.disk())
			w.started(w.numbered(1))
			if all := w.templates(); len(all) != 1 || all[0].State != localdisk.Ready || all[0].Clones != 2 {
				t.Errorf("templates %+v", all)
			}
			if files, _ := filepath.Glob(w.path("var/lib/diskhook/local/*")); len(files) != 6 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

// The first copy of a host is a clone, too: there is no directory yet.
func TestFirstCopySharesBlocks(t *testing.T) {
	w := newShared(t)
	t.Setenv("DISKHOOK_TEST_DIR", w.path("var/lib/diskhook/local/not/yet"))
	w.started(w.disk())
	if all := w.templates(); len(all) != 1 || all[0].Clones != 1 {
		t.Errorf("templates %+v", all)
	}
}

// A template goes where that makes enough room, and only there.
func TestTemplatesAreNotRemovedForNothing(t *testing.T) {
	const base, disk = 2 << 20, 3 << 20 // bytes
	for name, tc := range map[string]struct {
		cloned bool
		free   int64 // beyond the reserve
		left   int   // templates
		want   *failure.Kind
	}{
		"its blocks are shared":      {cloned: true, free: disk - base/2, left: 1, want: failure.NoSpace},
		"it holds too little":        {free: base / 4, left: 1, want: failure.NoSpace},
		"it holds what is missing":   {free: disk - base/2, left: 0},
		"there is enough without it": {free: 2 * disk, left: 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newShared(t)
			w.started(w.disk())
			if !tc.cloned {
				must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
			}
			t.Setenv("DISKHOOK_TEST_CACHE", "") // what is made from here on is no clone
			t.Setenv("DISKHOOK_TEST_RESERVE", strconv.FormatInt(w.settledFree()-tc.free, 10))
			_, err := service().Fulfil(t.Context(), []localdisk.Disk{w.numbered(1)}, localdisk.Waiting{})
			if failure.KindOf(err) != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if all := w.templates(); len(all) != tc.left {
				t.Errorf("templates %+v", all)
			}
		})
	}
}

// settledFree is how many bytes are free where copies are, once XFS has freed
// what was removed: it does that a while later.
func (w *world) settledFree() int64 {
	w.t.Helper()
	var free []int64
	for len(free) < 400 {
		unix.Sync()
		var st unix.Statfs_t
		must(w.t, unix.Statfs(w.path("var/lib/diskhook/local"), &st))
		free = append(free, int64(st.Bavail)*st.Bsize)
		if n := len(free); n >= 8 && free[n-1] == free[n-8] {
			return free[n-1]
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Fatal("what is free keeps changing")
	return 0
}

// Two that start at once where there is room for one: the other one is refused,
// and leaves nothing.
func TestRoomIsGivenOnce(t *testing.T) {
	w := newShared(t)
	t.Setenv("DISKHOOK_TEST_CACHE", "")
	w.started(w.disk()) // whatever the file system needs for the first one
	const disk = 3 << 20
	t.Setenv("DISKHOOK_TEST_RESERVE", strconv.FormatInt(w.settledFree()-disk*3/2, 10))
	// Both look for room when they are let in.
	room, err := filepath.Glob(w.path("run/diskhook/lock/room-*"))
	must(t, err)
	if len(room) != 1 {
		t.Fatalf("locks %v", room)
	}
	held, err := lock.Acquire(t.Context(), filepath.Dir(room[0]), filepath.Base(room[0]))
	must(t, err)
	var starts sync.WaitGroup
	errs := make([]error, 2)
	for i := range errs {
		starts.Go(func() {
			_, errs[i] = service().Fulfil(t.Context(), []localdisk.Disk{w.numbered(1 + i)}, localdisk.Waiting{})
		})
	}
	sidecars := func() int {
		files, err := filepath.Glob(w.path("var/lib/diskhook/local/*.json"))
		must(t, err)
		return len(files)
	}
	for sidecars() < 3 && t.Context().Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	held.Release()
	starts.Wait()
	if refused := errors.Join(errs...); !errors.Is(refused, failure.NoSpace) || errs[0] != nil && errs[1] != nil {
		t.Errorf("got %v", errs)
	}
	if n := sidecars(); n != 2 {
		t.Errorf("%d sidecars of 2 copies", n)
	}
}

func TestFileSystemThatSharesNoBlocksHasNoTemplates(t *testing.T) {
	w := newCache(t, "dir")
	dir := w.path("var/lib/diskhook/local")
	must(t, os.MkdirAll(dir, 0o711))
	w.tool("mount", "-t", "tmpfs", "tmpfs", dir)
	t.Cleanup(func() { w.tool("umount", dir) })
	w.started(w.disk())
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
	w.onlyCopy()
	log, err := os.ReadFile(w.path("run/diskhook/status/" + domain + "/vda.log"))
	must(t, err)
	if !strings.Contains(string(log), "cannot share blocks") {
		t.Errorf("nothing says why: %s", log)
	}
}

// fill takes what is free in the directory, but for so many bytes.
func (w *world) fill(leave int64) {
	w.t.Helper()
	f, err := os.OpenFile(w.path("var/lib/diskhook/local/filler"), os.O_RDWR|os.O_CREATE, 0o600)
	must(w.t, err)
	defer f.Close()
	size, err := f.Seek(0, 2)
	must(w.t, err)
	var st unix.Statfs_t
	// No piece is as large as all that is free.
	for piece := int64(32 << 20); piece >= 4096; {
		must(w.t, unix.Fstatfs(int(f.Fd()), &st))
		if int64(st.Bavail)*st.Bsize-piece < leave || unix.Fallocate(int(f.Fd()), 0, size, piece) != nil {
			piece /= 2
			continue
		}
		size += piece
	}
	if free := int64(st.Bavail) * st.Bsize; free > leave+64<<10 {
		w.t.Fatalf("%d bytes are free", free)
	}
}

// Where a copy fits, but not beside a template, there is none: neither a new
// one nor one of before.
func TestTemplateIsNotInTheWayOfACopy(t *testing.T) {
	w := newShared(t)
	w.fill(4 << 20) // the disk has 3 MiB, the template 2
	w.started(w.disk())
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
	w = newShared(t)
	w.started(w.numbered(1))
	if all := w.templates(); len(all) != 1 {
		t.Errorf("templates %+v", all)
	}
	must(t, service().Remove(t.Context(), w.numbered(1).Domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	w.fill(2 << 20)
	w.started(w.disk())
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
}

// A directory that is full but for a template gets rid of it, and says so when
// that is not enough.
func TestDirectoryMakesRoomOfTemplates(t *testing.T) {
	w := newShared(t)
	w.started(w.disk())
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	w.fill(2 << 20)
	t.Setenv("DISKHOOK_TEST_CACHE", "")
	w.started(w.disk())
	if all := w.templates(); len(all) != 0 {
		t.Errorf("templates %+v", all)
	}
	must(t, service().Remove(t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}))
	w.fill(1 << 20)
	if _, err := service().Fulfil(t.Context(), []localdisk.Disk{w.disk()}, localdisk.Waiting{}); !errors.Is(err, failure.NoSpace) {
		t.Errorf("got %v", err)
	}
}
