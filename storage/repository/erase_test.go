// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
	"diskhook/storage/repository"
)

// link gives an image's topmost volume a second name, so that what it holds can be
// looked at once it is deleted.
func (w *world) link(repo, image, name string) string {
	w.Helper()
	p, err := w.on("h1").PrepareImage(w.Context(), repo, image, repository.Preparing{Holder: "test"})
	must(w, err)
	from, err := filepath.EvalSymlinks(p.Path)
	must(w, err)
	must(w, os.Link(from, w.path(name)))
	must(w, w.on("h1").ReleaseImage(w.Context(), repo, image, "test"))
	return w.path(name)
}

func (w *world) blank(path string, wanted bool) {
	w.Helper()
	b, err := os.ReadFile(path)
	must(w, err)
	if blank := bytes.Equal(b, make([]byte, len(b))); blank != wanted {
		w.Errorf("%s: all zero: %v", filepath.Base(path), blank)
	}
}

var postZero = repository.Options{PostZero: true}

func TestARemovedImageIsOverwritten(t *testing.T) {
	for name, o := range map[string]repository.Options{
		"zero": postZero, "discard": {Discard: true}, "both": {PostZero: true, Discard: true},
	} {
		t.Run(name, func(t *testing.T) {
			eachFormat(t, func(t *testing.T, format string) {
				w := newWorld(t, format)
				disk, base := w.diskOnBase()
				top, below := w.link("a", disk, "top"), w.link("a", base, "below")
				must(t, w.on("h1").RemoveImage(t.Context(), "a", disk, o))
				w.blank(below, false) // it is another image's
				w.holds("a", base, w.path("before.raw"))
				if o.PostZero || format != "clvm-1.2" { // its stand-in discards nothing
					w.blank(top, true)
				}
				if left := w.files("a"); len(left) != 1 {
					t.Errorf("left: %v", left)
				}
				w.settled()
			})
		})
	}
}

// What others read stays, and is overwritten when the last of them goes, whoever removes
// that and however.
func TestWhatOthersReadIsOverwrittenAfterThem(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		top, below := w.link("a", disk, "top"), w.link("a", base, "below")
		must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
		must(t, s.RemoveImage(ctx, "a", base, postZero)) // an afterthought
		w.blank(below, false)
		w.holds("a", disk, w.path("now.raw"))
		must(t, w.on("h2").RemoveImage(ctx, "a", disk, repository.Options{}))
		w.blank(below, true)
		w.blank(top, false) // nobody asked for that
		if left := w.files("a"); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		w.settled()
	})
}

// A merge leaves nothing of what was removed in a volume that is not overwritten.
func TestWhatWasMergedIsOverwritten(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		top, below := w.link("a", disk, "top"), w.link("a", base, "below")
		must(t, s.RemoveImage(ctx, "a", base, postZero))
		w.repair("a")
		w.holds("a", disk, w.path("now.raw"))
		if left := w.files("a"); len(left) != 1 {
			t.Fatalf("not merged: %v", left)
		}
		must(t, s.RemoveImage(ctx, "a", disk, repository.Options{}))
		w.blank(below, true)
		if capable, err := s.Capabilities(ctx, "a"); err != nil || !capable.Stale { // else it sank into the one below
			w.blank(top, true)
		}
		w.settled()
	})
}

func TestASnapshotThatComesBackIsNotOverwritten(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	_, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	below := w.link("a", base, "below")
	must(t, s.RemoveImage(ctx, "a", base, postZero))
	_, err = s.CopyImage(ctx, "a", base, "", nil, repository.Options{ImageHints: map[string]string{base: "b"}})
	must(t, err)
	must(t, s.RemoveImage(ctx, "a", disk, repository.Options{}))
	w.holds("a", base, w.path("before.raw"))
	must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
	w.blank(below, false)
}

// Whoever still has the file open without having said so (it is not prepared) goes on
// reading what is there; the removal goes on after him.
func TestWhatSomebodyHasOpenIsNotOverwritten(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	top := w.link("a", disk, "top")
	f, err := os.Open(top)
	must(t, err)
	must(t, imagelock.Read(f))
	must(t, s.RemoveImage(ctx, "a", disk, postZero))
	w.blank(top, false)
	tasks, err := s.ListTasks(ctx, "a")
	must(t, err)
	if len(tasks) != 1 || tasks[0].Verb != "remove" || tasks[0].StageName != "erase" || tasks[0].Stage != "1/2" || tasks[0].LastError == "" {
		t.Errorf("%+v", tasks)
	}
	refused(t, w.on("h2").Resume(ctx, "a"), failure.Conflict)
	// Nobody gets it back, or lays anything over it.
	_, err = s.GetImage(ctx, "a", disk)
	refused(t, err, repository.ErrNoImage)
	must(t, f.Close())
	must(t, w.on("h2").Resume(ctx, "a"))
	w.blank(top, true)
	w.holds("a", base, w.path("before.raw"))
	w.settled()
}
