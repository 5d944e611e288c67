// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
)

// tree is what is on disk: every file with its content and when it was written, but for
// the journal of the fake LVM, which has questions as well.
func (w *world) tree() map[string]string {
	w.Helper()
	all := map[string]string{}
	must(w, filepath.WalkDir(w.Dir, func(path string, e fs.DirEntry, err error) error {
		journal, _ := filepath.Match(w.path("groups", "*", "log"), path)
		if err != nil || e.IsDir() || journal {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		all[path] = info.ModTime().String() + string(content)
		return err
	}))
	return all
}

// still fails if anything on disk is other than it was.
func (w *world) still(before map[string]string, what string) {
	w.Helper()
	if now := w.tree(); !maps.Equal(now, before) {
		for path, content := range now {
			if before[path] != content {
				w.Errorf("%s: changed %s", what, path)
			}
		}
		w.Errorf("%s: it changed something", what)
	}
}

// attempt is a verb, meant or as a preview.
type attempt func(s *repository.Service, preview bool) (string, error)

func creating(t *testing.T, size int64, base, userData string, o repository.Options) attempt {
	return func(s *repository.Service, preview bool) (string, error) {
		verb := s.CreateVirtualDisk
		if preview {
			verb = s.PreviewVirtualDisk
		}
		return verb(t.Context(), "a", size, base, json.RawMessage(userData), o)
	}
}

func snapshotting(t *testing.T, disk string, o repository.Options) attempt {
	return func(s *repository.Service, preview bool) (string, error) {
		verb := s.CreateSnapshot
		if preview {
			verb = s.PreviewSnapshot
		}
		return verb(t.Context(), "a", disk, nil, o)
	}
}

func copying(t *testing.T, image, base string, o repository.Options) attempt {
	return func(s *repository.Service, preview bool) (string, error) {
		verb := s.CopyImage
		if preview {
			verb = s.PreviewCopy
		}
		return verb(t.Context(), "b", image, base, nil, o)
	}
}

func importing(t *testing.T, file, format string, o repository.Options) attempt {
	return func(s *repository.Service, preview bool) (string, error) {
		verb := s.ImportImage
		if preview {
			verb = s.PreviewImport
		}
		return verb(t.Context(), "a", []imagecheck.Layer{{Path: file, Format: format}}, repository.Snapshot, nil, o)
	}
}

// A preview refuses in the words of the verb, and leaves no trace.
func TestPreviewsRefuseWhatTheVerbsRefuse(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s := w.on("h1")
		none := repository.Options{}
		disk, base := w.diskOnBase()
		used, err := s.CreateVirtualDisk(t.Context(), "a", mib, "", nil, none)
		must(t, err)
		_, err = s.PrepareImage(t.Context(), "a", used, repository.Preparing{Holder: "vm", Write: true})
		must(t, err)
		other, err := s.CreateVirtualDisk(t.Context(), "a", mib, "", nil, repository.Options{RequestID: "taken"})
		must(t, err)
		_, err = w.on("h2").ListImages(t.Context(), "b", repository.Filter{})
		must(t, err)
		foreign := w.path("notes.txt")
		must(t, os.WriteFile(foreign, []byte("no image"), 0o600))

		for name, try := range map[string]attempt{
			"unknown base":        creating(t, 0, nowhere, "", none),
			"mutable base":        creating(t, 0, disk, "", none),
			"smaller than base":   creating(t, mib, base, "", none),
			"size":                creating(t, -1, "", "", none),
			"no room":             creating(t, 60<<40, "", "", none),
			"user data":           creating(t, mib, "", `"`+strings.Repeat("x", repository.MaxUserData)+`"`, none),
			"not JSON":            creating(t, mib, "", "{", none),
			"strategy":            creating(t, mib, "", "", repository.Options{Strategy: "speed"}),
			"another request":     creating(t, 2*mib, "", "", repository.Options{RequestID: "taken"}),
			"snapshot of nothing": snapshotting(t, nowhere, none),
			"snapshot of one":     snapshotting(t, base, none),
			"snapshot, in use":    snapshotting(t, used, none),
			"copy of nothing":     copying(t, nowhere, "", none),
			"copy, in use":        copying(t, used, "", none),
			"copy, unknown base":  copying(t, disk, nowhere, none),
			"copy, mutable base":  copying(t, base, disk, none),
			"copy, no ancestor":   copying(t, other, base, none),
			"copy, hint":          copying(t, base, "", repository.Options{ImageHints: map[string]string{base: "b"}}),
			"import of nothing":   importing(t, w.path("none.raw"), imagecheck.Raw, none),
			"import, not qcow2":   importing(t, foreign, imagecheck.QCOW2, none),
			"import from outside": importing(t, "/etc/machine-id", imagecheck.Raw, none),
		} {
			if name == "no room" && format != "clvm-1.2" {
				continue // a disk takes no room at once there
			}
			before := w.tree()
			there, preview := try(s, true)
			w.still(before, name)
			_, verb := try(s, false)
			if preview == nil || verb == nil || failure.Line(preview) != failure.Line(verb) || !errors.Is(preview, failure.KindOf(verb)) || there != "" {
				t.Errorf("%s: the preview says %v %q, the verb %v", name, preview, there, verb)
			}
		}
	})
}

// What would be done is not done by its preview, and what is there already is named.
func TestPreviewsChangeNothing(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s := w.on("h1")
		asked := repository.Options{RequestID: "one"}
		disk, base := w.diskOnBase()
		file := w.reference("import", mib)
		_, err := s.ListTasks(t.Context(), "a")
		must(t, err)
		for name, try := range map[string]attempt{
			"create":   creating(t, mib, "", `{"os":"x"}`, repository.Options{RequestID: "create"}),
			"overlay":  creating(t, 0, base, "", repository.Options{RequestID: "overlay"}),
			"snapshot": snapshotting(t, disk, asked),
			"copy":     copying(t, base, "", repository.Options{}),
			"disk":     copying(t, disk, "", asked),
			"import":   importing(t, file, imagecheck.Raw, repository.Options{RequestID: "import"}),
		} {
			before := w.tree()
			there, err := try(s, true)
			must(t, err)
			w.still(before, name)
			if there != "" {
				t.Errorf("%s: %s is said to be there", name, there)
			}
			made, err := try(s, false)
			must(t, err)
			before = w.tree()
			there, err = try(s, true)
			w.still(before, name+" again")
			if err != nil || there != made {
				t.Errorf("%s: %q is there, not %s: %v", name, there, made, err)
			}
		}
		before := w.tree()
		must(t, s.PreviewRemove(t.Context(), "a", base, repository.Options{PostZero: true}))
		must(t, s.PreviewUserData(t.Context(), "a", base, json.RawMessage("1")))
		refused(t, s.PreviewUserData(t.Context(), "a", base, json.RawMessage("{")), failure.Usage, "user data")
		_, _, err = s.PreviewResize(t.Context(), "a", disk, 16*mib)
		must(t, err)
		w.still(before, "remove, annotate, resize")
		w.settled()
	})
}
