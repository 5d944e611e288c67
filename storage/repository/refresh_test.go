// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// garbage removes a disk and what it lies on while a damaged document keeps both from
// being deleted, and returns the fix that does it once that is gone. The snapshot
// is in repository b, too.
func (w *world) garbage() (fix repository.Fix, base string) {
	s, ctx := w.on("h1"), w.Context()
	disk, base := w.diskOnBase()
	_, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(w, err)
	damaged := w.path("repos", "a", "images", nowhere+".json")
	must(w, os.WriteFile(damaged, []byte("damaged"), 0o600))
	for _, id := range []string{base, disk} {
		must(w, s.RemoveImage(ctx, "a", id, repository.Options{}))
	}
	must(w, os.Remove(damaged))
	report, err := s.CheckStorageRepository(ctx, "a")
	if err != nil || len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Clean || len(report.Fixes[0].Images) != 2 {
		w.Fatalf("%+v: %v", report, err)
	}
	return report.Fixes[0], base
}

// Others go on while a repository is scanned for what may be cleaned, merged or swept.
func TestNobodyWaitsForAScan(t *testing.T) {
	for _, verb := range []string{"clean", "merge", "sweep"} {
		t.Run(verb, func(t *testing.T) {
			w := newWorld(t, "localfs-1.0")
			ctx := t.Context()
			other, err := w.on("h1").CreateVirtualDisk(ctx, "a", mib, "", nil, repository.Options{})
			must(t, err)
			changed := false
			s := w.on("h1")
			s.Formats = []format.Format{&faulty{reading: func() {
				must(t, w.on("h2").SetUserData(ctx, "a", other, []byte(`"meanwhile"`)))
				changed = true
			}}}
			switch verb {
			case "clean":
				fix, _ := w.garbage()
				must(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}))
			case "merge":
				_, base := w.diskOnBase()
				must(t, w.on("h1").RemoveImage(ctx, "a", base, repository.Options{}))
				report, err := w.on("h1").CheckStorageRepository(ctx, "a")
				if err != nil || len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Merge {
					t.Fatalf("%+v: %v", report, err)
				}
				must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))
			case "sweep":
				disk, _ := w.diskOnBase()
				must(t, s.RemoveImage(ctx, "a", disk, repository.Options{}))
			}
			if !changed {
				t.Error("nothing was scanned")
			}
			w.userData("a", other, `"meanwhile"`)
		})
	}
}

// What is wanted again between the scan and the lock is not cleaned.
func TestWhatBecameNeededMeanwhileStays(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	fix, base := w.garbage()
	s := w.on("h1")
	s.Formats = []format.Format{&faulty{locking: func() {
		_, err := w.on("h2").CopyImage(ctx, "a", base, "", nil, repository.Options{})
		must(t, err)
	}}}
	refused(t, s.FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrStaleFix)
	w.holds("a", base, w.path("before.raw"))
	w.repair("a")
	w.holds("a", base, w.path("before.raw"))
}

// Several hosts make, snapshot, copy, remove and repair at the same time, in one
// repository: nobody loses anything, and nothing is left behind.
func TestHostsAtTheSameTime(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		_, base := w.diskOnBase()
		operators := make([]*operator, 3)
		var working sync.WaitGroup
		for n := range operators {
			o := &operator{Service: w.on(fmt.Sprintf("h%d", n%2+1)), base: base, random: rand.New(rand.NewPCG(uint64(n), 7))}
			operators[n] = o
			working.Go(func() {
				for step := 0; step < 12 && o.failed == nil; step++ {
					o.failed = o.step(t.Context())
				}
			})
		}
		working.Wait()
		for _, o := range operators {
			must(t, o.failed)
		}
		must(t, w.on("h1").Resume(t.Context(), "a"))
		w.repair("a")
		for _, o := range operators {
			for _, id := range o.images {
				w.holds("a", id, w.path("before.raw"))
			}
		}
	})
}

// operator has images that read as their base.
type operator struct {
	*repository.Service
	base   string
	random *rand.Rand
	images []string
	failed error
}

// step does something with one of the images, and then what a check finds, as far
// as others let it.
func (o *operator) step(ctx context.Context) error {
	none := repository.Options{}
	var id string
	var err error
	switch i := o.random.IntN(max(len(o.images), 1)); {
	case len(o.images) == 0 || o.random.IntN(3) == 0:
		id, err = o.CreateVirtualDisk(ctx, "a", 0, o.base, nil, none)
	case o.random.IntN(3) == 0:
		id, err = o.CopyImage(ctx, "a", o.images[i], "", nil, none)
	case o.random.IntN(2) == 0:
		id, err = o.CreateSnapshot(ctx, "a", o.images[i], nil, none)
	default:
		if err = o.RemoveImage(ctx, "a", o.images[i], none); err == nil {
			o.images = slices.Delete(o.images, i, i+1)
		}
	}
	if id != "" && !slices.Contains(o.images, id) {
		o.images = append(o.images, id)
	}
	if !passes(err) {
		return err
	}
	report, err := o.CheckStorageRepository(ctx, "a")
	for _, fix := range report.Fixes {
		if fixed := o.FixStorageRepository(ctx, "a", fix, none); !passes(fixed) {
			err = errors.Join(err, fmt.Errorf("%+v: %w", fix, fixed))
		}
	}
	return err
}

// passes are those refusals that others who work on the same images may cause.
func passes(err error) bool {
	of := []error{nil, repository.ErrNotDisk, repository.ErrStaleFix, repository.ErrBusy, repository.ErrInUse, repository.ErrBroken, repository.ErrNoImage}
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}
