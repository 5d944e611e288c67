// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
)

// filling calls hook before room is made for the first volume in a directory: what is
// copied to it is open by then.
type filling struct {
	localfs.Format
	path string
	hook func()
}

func (f *filling) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := f.Format.Open(ctx, parameters)
	if parameters["path"] != f.path {
		return p, err
	}
	return &fillingPlace{p, f}, err
}

type fillingPlace struct {
	format.Place
	f *filling
}

func (p *fillingPlace) Make(ctx context.Context, id, kind string, bytes int64) (bool, error) {
	if hook := p.f.hook; hook != nil {
		p.f.hook = nil
		hook()
	}
	return p.Place.Make(ctx, id, kind, bytes)
}

// A snapshot whose volume a merge takes while it is copied elsewhere is not published
// there with what the merge wrote.
func TestACopyOfWhatIsMergedMeanwhileIsNotPublished(t *testing.T) {
	for _, how := range []string{"whole", "difference"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, "localfs-1.0")
			ctx := t.Context()
			disk, base := w.overMuch()
			id, under := base, ""
			if how == "difference" { // to a snapshot of which it has nothing
				empty, err := w.on("h1").CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{})
				must(t, err)
				under, err = w.on("h1").CreateSnapshot(ctx, "a", empty, nil, repository.Options{})
				must(t, err)
				_, err = w.on("h1").CopyImage(ctx, "b", under, "", nil, repository.Options{})
				must(t, err)
				disk, err = w.on("h1").CreateVirtualDisk(ctx, "a", 0, under, nil, repository.Options{Strategy: repository.Performance})
				must(t, err)
				now := w.reference("now", 4*mib)
				w.write("a", disk, now, 1, "0", "4M")
				id, err = w.on("h1").CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
				must(t, err)
				w.keep(now, "before")
				must(t, w.on("h1").RemoveImage(ctx, "a", disk, repository.Options{}))
				disk, err = w.on("h1").CreateVirtualDisk(ctx, "a", 0, id, nil, repository.Options{})
				must(t, err)
				w.write("a", disk, now, 2, "64k", "64k")
			}
			s, merged := w.on("h1"), false
			s.Formats = []format.Format{&filling{path: w.path("repos", "b"), hook: func() {
				must(t, w.on("h2").RemoveImage(ctx, "a", id, repository.Options{}))
				for _, fix := range w.repair("a") {
					merged = merged || fix.Type == repository.Merge
				}
			}}}
			_, err := s.CopyImage(ctx, "b", id, under, nil, repository.Options{})
			must(t, err)
			if !merged {
				t.Fatal("nothing was merged")
			}
			st, err := s.GetImageStatus(ctx, "b", id)
			must(t, err)
			if st.State != repository.Broken || !st.Open || st.LastError == "" {
				w.holds("b", id, w.path("before.raw"))
				t.Errorf("%+v", st)
			}
			w.holds("a", disk, w.path("now.raw"))
			refused(t, s.Run(ctx, "b", id), failure.NotFound) // it is nowhere any more
		})
	}
}

// The volumes of a disk are not copied byte by byte while a guest writes them, however
// long it is since that was planned.
func TestTheDifferenceOfADiskInUseIsNotCopied(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		_, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
		must(t, err)
		copied, err := s.CopyImage(ctx, "b", disk, base, nil, repository.Options{NoAutoFix: true})
		must(t, err)
		_, err = s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
		must(t, err)
		refused(t, s.Run(ctx, "b", copied), repository.ErrInUse, "vm on host h1")
		must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
		must(t, s.Run(ctx, "b", copied))
		w.holds("b", copied, w.path("now.raw"))
	})
}

// Nor while they are merged: their bytes do not belong together then.
func TestTheDifferenceOfWhatIsMergedIsNotCopied(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	middle, err := w.on("h1").CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(t, err)
	w.write("a", disk, w.path("now.raw"), 3, "3M", "64k")
	tip, err := w.on("h1").CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(t, err)
	must(t, w.on("h1").RemoveImage(ctx, "a", middle, repository.Options{}))
	_, err = w.on("h1").CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	_, err = w.on("h1").CopyImage(ctx, "b", tip, base, nil, repository.Options{NoAutoFix: true})
	must(t, err)
	s := w.on("h1")
	s.Formats = []format.Format{&filling{path: w.path("repos", "b"), hook: func() { w.repair("a") }}}
	if err := s.Run(ctx, "b", tip); err == nil {
		w.holds("b", tip, w.path("now.raw"))
		t.Error("it was copied")
	}
	w.holds("a", disk, w.path("now.raw"))
}
