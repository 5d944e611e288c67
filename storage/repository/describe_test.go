// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// volume is the id of the one that an image points to.
func (w *world) volume(repo, image string) string {
	w.Helper()
	at, err := w.on("h1").PreviewImage(w.Context(), repo, image, repository.Preparing{})
	must(w, err)
	id, _, _ := strings.Cut(filepath.Base(at.Path), ".")
	return id
}

// says is what a document says, but for its generation.
func says(t *testing.T, document []byte) map[string]any {
	t.Helper()
	line, _, _ := strings.Cut(string(document), "\n")
	all := map[string]any{}
	must(t, json.Unmarshal([]byte(line), &all))
	delete(all, "gen")
	return all
}

// byHand does the fix that is about a document, which has to be named.
func (w *world) byHand(repo, id string) error {
	w.Helper()
	report, err := w.on("h1").CheckStorageRepository(w.Context(), repo)
	must(w, err)
	i := slices.IndexFunc(report.Fixes, func(f repository.Fix) bool { return f.ByName && slices.Contains(f.Images, id) })
	if i < 0 {
		w.Fatalf("no fix of %s: %+v", id, report)
	}
	refused(w, w.on("h1").FixStorageRepository(w.Context(), repo, report.Fixes[i], repository.Options{}), failure.Usage, "diskhook repo fix "+repo)
	return w.on("h1").FixStorageRepository(w.Context(), repo, report.Fixes[i], repository.Options{Confirm: id})
}

// The documents of volumes are damaged, or lost. What they said is told by those that have
// the volumes, and by their data.
func TestAVolumeIsDescribedAnew(t *testing.T) {
	for _, lost := range []bool{false, true} {
		name := map[bool]string{false: "damaged ", true: "lost "}[lost]
		for _, f := range formats {
			t.Run(name+f.name, func(t *testing.T) {
				w := newWorld(t, f.name)
				s, ctx := w.on("h1"), t.Context()
				disk, base := w.diskOnBase()
				volumes := []string{w.volume("a", disk), w.volume("a", base)}
				was := map[string][]byte{}
				for _, id := range volumes {
					was[id] = w.spoil("a", format.Volume, id)
					if lost {
						must(t, w.place("a").Remove(ctx, format.Volume, id, func() error { return nil }))
					}
				}
				w.state("a", disk, repository.Broken)
				data := w.files("a")
				for _, id := range slices.Backward(volumes) {
					must(t, w.byHand("a", id))
					now, err := w.place("a").Read(ctx, format.Volume, id)
					must(t, err)
					for key, value := range says(t, was[id]) {
						if says(t, now)[key] != value {
							t.Errorf("%s was %s, and is %s", id, was[id], now)
						}
					}
				}
				if now := w.files("a"); !slices.Equal(data, now) {
					t.Errorf("data %v is %v", data, now)
				}
				w.holds("a", disk, w.path("now.raw"))
				w.holds("a", base, w.path("before.raw"))

				// What was put aside is kept until it is said to be forgotten.
				for _, id := range volumes {
					kept, err := w.place("a").Read(ctx, format.Aside, id)
					if lost != errors.Is(err, fs.ErrNotExist) || !lost && slices.Equal(kept, was[id]) {
						t.Errorf("%s: %v", kept, err)
					}
					if !lost {
						must(t, w.byHand("a", id))
					}
				}
				must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
				w.settled()
				w.holds("a", disk, w.path("now.raw"))
				if len(w.files("a")) != 1 {
					t.Errorf("left: %v", w.files("a"))
				}
			})
		}
	}
}

// As long as it is damaged nothing that it may need is freed, and one that was brought back
// is left alone.
func TestADamagedVolumeFreesNothing(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
	top := w.volume("a", disk)
	was := w.spoil("a", format.Volume, top)
	data := w.files("a")
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	if len(report.Fixes) != 1 || !slices.ContainsFunc(report.Problems, func(p string) bool { return strings.Contains(p, "volume "+top+": damaged document") }) {
		t.Fatalf("%+v", report)
	}
	must(t, w.place("a").Write(ctx, format.Volume, top, was, func() error { return nil }))
	refused(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{Confirm: top}), repository.ErrStaleFix)
	w.spoil("a", format.Volume, top)

	// Its header names what is not here.
	path := w.path("repos", "a", "data", top+".qcow2")
	w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "elsewhere.raw", "-F", "raw", path)
	refused(t, w.byHand("a", top), failure.Precondition, "elsewhere.raw")
	if now := w.files("a"); !slices.Equal(data, now) {
		t.Errorf("data %v is %v", data, now)
	}
	i := slices.IndexFunc(data, func(name string) bool { return !strings.HasPrefix(name, top) })
	w.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", data[i], "-F", "raw", path)
	must(t, w.byHand("a", top))
	w.holds("a", disk, w.path("now.raw"))
}

// A volume that is being made is made anew.
func TestADamagedVolumeOfAPlanIsPutAside(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	_, base := w.diskOnBase()
	copied, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{NoAutoFix: true})
	must(t, err)
	life, dies := context.WithCancel(ctx)
	dying := w.on("h1")
	dying.Formats = []format.Format{&faulty{slow: dies}}
	refused(t, dying.Run(life, "b", copied), context.Canceled)
	made, err := w.place("b").List(ctx, format.Volume)
	must(t, err)
	w.spoil("b", format.Volume, made[0])
	refused(t, s.Run(ctx, "b", copied), repository.ErrDamaged)
	must(t, w.byHand("b", made[0]))
	must(t, s.Run(ctx, "b", copied))
	w.holds("b", copied, w.path("before.raw"))
	must(t, w.byHand("b", made[0]))
	w.settled()
}

// Who uses an image is not known: it counts as in use, until somebody says that it is not, and
// nobody is seen to have it open.
func TestDamagedUsersCountAsUsers(t *testing.T) {
	eachFormat(t, func(t *testing.T, name string) {
		w := newWorld(t, name)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		p, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
		must(t, err)
		w.spoil("a", format.Pin, disk)
		none := repository.Options{}
		const way = "who uses it is not known"
		refused(t, s.RemoveImage(ctx, "a", disk, none), repository.ErrDamaged, way, "diskhook repo check a")
		refused(t, s.ResizeVirtualDisk(ctx, "a", disk, 8*mib, none), repository.ErrDamaged, way)
		_, err = s.CreateSnapshot(ctx, "a", disk, nil, none)
		refused(t, err, repository.ErrDamaged, way)
		_, err = w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "other", Dead: []string{"h1"}})
		refused(t, err, repository.ErrDamaged, way)
		must(t, s.RemoveImage(ctx, "a", base, none))
		deep, err := s.DeepCheckStorageRepository(ctx, "a")
		if err != nil || deep.Skipped != 2 {
			t.Errorf("%+v: %v", deep, err)
		}
		if len(deep.Fixes) != 1 || !deep.Fixes[0].ByName || deep.Fixes[0].Images[0] != disk || !strings.Contains(deep.Fixes[0].Summary, "counts as in use") {
			t.Fatalf("%+v", deep)
		}
		if name != formats[2].name { // a device has no such locks
			guest, err := os.OpenFile(p.Path, os.O_RDWR, 0)
			must(t, err)
			must(t, imagelock.Write(guest))
			refused(t, w.byHand("a", disk), repository.ErrInUse)
			must(t, guest.Close())
		}
		must(t, w.byHand("a", disk))
		_, err = s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "again", Write: true})
		must(t, err)
		must(t, s.ReleaseImage(ctx, "a", disk, "again"))
		forget := w.byName("a", repository.Clean)
		must(t, s.FixStorageRepository(ctx, "a", forget, repository.Options{Confirm: forget.Images[0]}))
		w.settled()
		w.holds("a", disk, w.path("now.raw"))
	})
}
