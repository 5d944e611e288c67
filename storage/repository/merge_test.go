// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
)

// overMuch is a disk in repository a over a snapshot that has more than the disk. What
// the disk holds is in the file now.raw, what the snapshot holds in before.raw.
func (w *world) overMuch() (disk, base string) {
	w.Helper()
	s, ctx := w.on("h1"), w.Context()
	disk, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{})
	must(w, err)
	now := w.reference("now", 4*mib)
	w.write("a", disk, now, 1, "0", "4M")
	base, err = s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(w, err)
	w.keep(now, "before")
	w.write("a", disk, now, 2, "64k", "64k")
	return disk, base
}

// sinking is overMuch with the snapshot removed: the merge that was planned writes
// the disk's data into the snapshot's volume. The snapshot is in repository b, too.
func (w *world) sinking() (disk, removed string) {
	w.Helper()
	s, ctx := w.on("h1"), w.Context()
	disk, removed = w.overMuch()
	var err error
	_, err = s.CopyImage(ctx, "b", removed, "", nil, repository.Options{})
	must(w, err)
	must(w, s.RemoveImage(ctx, "a", removed, repository.Options{}))
	report, err := s.CheckStorageRepository(ctx, "a")
	if err != nil || len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Merge {
		w.Fatalf("%+v: %v", report, err)
	}
	must(w, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))
	return disk, removed
}

// unlocking calls hook once, right after the first lock of a volume was given up.
type unlocking struct {
	localfs.Format
	hook func()
	once sync.Once
}

func (f *unlocking) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := f.Format.Open(ctx, parameters)
	return &unlockingPlace{p, f}, err
}

type unlockingPlace struct {
	format.Place
	f *unlocking
}

func (p *unlockingPlace) TryLock(ctx context.Context, name string) (format.Lock, error) {
	l, err := p.Place.TryLock(ctx, name)
	if err == nil && strings.HasPrefix(name, "volume-") {
		l = &unlockingLock{l, p.f}
	}
	return l, err
}

type unlockingLock struct {
	format.Lock
	f *unlocking
}

func (l *unlockingLock) Release() {
	l.Lock.Release()
	l.f.once.Do(l.f.hook)
}

// Who gets to use a disk while it is merged gets the volume that it goes on in.
func TestADiskIsNotHandedOutBeforeItsMergeIsDone(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.sinking()
	s, guest := w.on("h1"), w.on("h2")
	s.Formats = []format.Format{&unlocking{hook: func() {
		p, err := guest.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
		must(t, err)
		w.tool("qemu-io", "-f", p.Format, "-c", "write -q -P 3 1M 64k", "-c", "flush", p.Path)
		w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 3 1M 64k", w.path("now.raw"))
	}}}
	must(t, s.Run(ctx, "a", disk))
	p, err := guest.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	must(t, err)
	if _, err := os.Stat(p.Path); err != nil {
		t.Error(err)
	}
	must(t, guest.ReleaseImage(ctx, "a", disk, "vm"))
	w.holds("a", disk, w.path("now.raw"))
	w.repair("a")
	w.holds("a", disk, w.path("now.raw"))
}

// The same for one that grows: it is handed out with its new size.
func TestADiskIsNotHandedOutBeforeItHasGrown(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	s := w.on("h1")
	var size int64
	s.Formats = []format.Format{&unlocking{hook: func() {
		p, err := w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
		must(t, err)
		size = p.Size
	}}}
	must(t, s.ResizeVirtualDisk(ctx, "a", disk, 8*mib, repository.Options{}))
	if size != 8*mib {
		t.Errorf("%d bytes", size)
	}
}

// Since a merge was planned others may have begun to need what it would write into.
func TestAMergeWritesIntoNothingThatIsWantedAgain(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h2"), t.Context()
		disk, removed := w.sinking()
		// Back again, with a disk over it, and gone once more.
		_, err := s.CopyImage(ctx, "a", removed, "", nil, repository.Options{})
		must(t, err)
		other, err := s.CreateVirtualDisk(ctx, "a", 0, removed, nil, repository.Options{})
		must(t, err)
		must(t, s.RemoveImage(ctx, "a", removed, repository.Options{}))
		must(t, s.Run(ctx, "a", disk))
		w.holds("a", other, w.path("before.raw"))
		w.holds("a", disk, w.path("now.raw"))
		w.repair("a")
		w.holds("a", other, w.path("before.raw"))
		w.holds("a", disk, w.path("now.raw"))
	})
}

// The same where only the difference to the removed snapshot was copied.
func TestAMergeLeavesTheBaseOfACopyAlone(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h2"), t.Context()
		disk, removed := w.sinking()
		tip, err := s.CreateVirtualDisk(ctx, "b", 0, removed, nil, repository.Options{})
		must(t, err)
		w.write("b", tip, w.keep(w.path("before.raw"), "tip"), 5, "2M", "64k")
		tip, err = s.CopyImage(ctx, "a", tip, removed, nil, repository.Options{})
		must(t, err)
		must(t, s.Run(ctx, "a", disk))
		w.holds("a", tip, w.path("tip.raw"))
		w.holds("a", disk, w.path("now.raw"))
		w.repair("a")
		w.holds("a", tip, w.path("tip.raw"))
		w.holds("a", disk, w.path("now.raw"))
	})
}

// watching calls before before each program is run.
type watching struct {
	command.Runner
	before func(command.Cmd)
}

func (r *watching) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	r.before(cmd)
	return r.Runner.Run(ctx, cmd)
}

// A program that writes in place outlives a worker that is killed, and nobody gets to use
// the volume before it ends. Who wants what it writes into is refused meanwhile, in words.
func TestAMergeKeepsEverybodyOutWhileItWrites(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, removed := w.sinking()
	tip, err := w.on("h1").CreateVirtualDisk(ctx, "b", 0, removed, nil, repository.Options{})
	must(t, err)
	w.write("b", tip, w.keep(w.path("before.raw"), "tip"), 5, "2M", "64k")
	s, other, writes := w.on("h1"), w.on("h2"), false
	s.Images = &qemuimg.QemuImg{Run: &watching{command.System{}, func(cmd command.Cmd) {
		if cmd.Args[0] != "commit" {
			return
		}
		writes = true
		if !slices.ContainsFunc(cmd.Files, func(f *os.File) bool { return strings.Contains(f.Name(), "volume-") }) {
			t.Errorf("%s does not keep the lock of the volume", cmd.String())
		}
		_, err := other.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
		refused(t, err, repository.ErrBusy)
		_, err = other.CreateVirtualDisk(ctx, "a", 0, removed, nil, repository.Options{ImageHints: map[string]string{removed: "a"}})
		refused(t, err, repository.ErrNoImage)
		tip, err = other.CopyImage(ctx, "a", tip, removed, nil, repository.Options{})
		must(t, err)
		st, err := other.GetImageStatus(ctx, "a", tip)
		must(t, err)
		if st.State != repository.Broken || !strings.Contains(st.LastError, "copy it here again") {
			t.Errorf("%+v", st)
		}
	}}}
	must(t, s.Run(ctx, "a", disk))
	if !writes {
		t.Fatal("nothing was written")
	}
	w.holds("a", disk, w.path("now.raw"))
	// Once it is there again the copy is made to its end.
	_, err = s.CopyImage(ctx, "a", removed, "", nil, repository.Options{})
	must(t, err)
	w.repair("a")
	w.holds("a", tip, w.path("tip.raw"))
	w.holds("a", removed, w.path("before.raw"))
	w.holds("a", disk, w.path("now.raw"))
}
