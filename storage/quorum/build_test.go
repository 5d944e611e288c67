// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

func TestBuild(t *testing.T) {
	w := built(t)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
	if d := w.decision(); d.Unclean || d.Base.Number != 1 {
		t.Errorf("decision %+v", d)
	}
	set, err := w.Build(t.Context(), w.building())
	must(t, err)
	if set.Intent != nil || set.NextID != 4 {
		t.Errorf("the same call again: %+v", set)
	}
}

// A set that is complete is not passed for one of another source, nor of the same
// one as it is now.
func TestBuildOfAnotherSource(t *testing.T) {
	w := built(t)
	for name, change := range map[string]func(b *quorum.Building){
		"another image": func(b *quorum.Building) { b.From = []imagecheck.Layer{{Path: w.flat, Format: "raw"}} },
		"another size": func(b *quorum.Building) {
			short := w.path("short.raw")
			w.tool("qemu-img", "create", "-q", "-f", "raw", short, "1M")
			b.From = []imagecheck.Layer{{Path: short, Format: "raw"}}
		},
		"written to": func(*quorum.Building) {
			w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 1M 64k", w.source[0].Path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := w.building()
			change(&b)
			_, err := w.Build(t.Context(), b)
			w.refused(err, failure.Conflict, "replica set db: it is built already, and not known to hold what "+b.From[0].Path+" holds now", "diskhook quorum verify --against", "diskhook quorum remove db")
		})
	}
}

func TestBuildOfZeros(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	b.From, b.Size = nil, diskSize
	must(t, os.WriteFile(w.path("c.raw"), bytes.Repeat([]byte("old"), 1000), 0o600))
	b.Overwrite = true
	_, err := w.Build(t.Context(), b)
	must(t, err)
	must(t, os.Truncate(w.flat, 0))
	must(t, os.Truncate(w.flat, diskSize))
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
}

// Images with backing files of their own are taken as they are, if they are
// equal.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	b := quorum.Building{Name: "db", Threshold: 2, Adopt: true}
	for _, name := range []string{"a", "b", "c"} {
		base, top := w.path(name+"-base.raw"), w.path(name+".qcow2")
		w.tool("cp", w.path("base.raw"), base)
		w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top, fmt.Sprint(diskSize))
		w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x33 3M 192k", top)
		b.Replicas = append(b.Replicas, w.file(name+".qcow2", "qcow2"))
	}
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 5M 4k", b.Replicas[2].Path)
	_, err := w.Build(t.Context(), b)
	w.refused(err, failure.Problems, "r3 differs in 4096 bytes from byte 5242880 on")
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -z 5M 4k", b.Replicas[2].Path)
	set, err := w.Build(t.Context(), b)
	must(t, err)
	if got := len(set.Replicas[1].Chain); got != 2 {
		t.Errorf("a chain of %d", got)
	}
	w.holds(w.flat)
	// Writes go to the top, never below it.
	before, err := os.ReadFile(w.path("b-base.raw"))
	must(t, err)
	w.spoil("r2", "0x11", "0", "64k")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	w.holds(w.flat)
	if after, err := os.ReadFile(w.path("b-base.raw")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the backing file was written to (%v)", err)
	}
}

// A build whose source is written to between a crash and the same call again
// has what the source holds then.
func TestBuildGoesOnWithAChangedSource(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	if err := w.verb(job{Build: &b}, "DISKHOOK_FAILPOINT=quorum.made.r3=kill"); err == nil {
		t.Fatal("it was not killed")
	}
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 5M 64k", w.source[0].Path)
	set, err := w.Build(t.Context(), b)
	must(t, err)
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
	w.holds(w.flat)
	if set.Intent != nil {
		t.Error("it is not complete")
	}
	must(t, w.Current(t.Context(), "db", w.source, nil))
}

// What must not be built is refused in one line, and leaves nothing behind.
func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world, *quorum.Building)
		kind   *failure.Kind
		words  []string
	}{
		"threshold 0":      {func(_ *world, b *quorum.Building) { b.Threshold = 0 }, failure.Usage, []string{"threshold 0: it must be at least 1"}},
		"threshold beyond": {func(_ *world, b *quorum.Building) { b.Threshold = 4 }, failure.Usage, []string{"threshold 4: there are only 3 replicas"}},
		"minority":         {func(_ *world, b *quorum.Building) { b.Threshold = 1 }, failure.Usage, []string{"--allow-minority"}},
		"twice":            {func(_ *world, b *quorum.Building) { b.Replicas[1] = b.Replicas[0] }, failure.Usage, []string{"a.raw is also in replica r1"}},
		"no source":        {func(_ *world, b *quorum.Building) { b.From = nil }, failure.Usage, []string{"--from SRC, --adopt or --size"}},
		"outside":          {func(_ *world, b *quorum.Building) { b.Replicas[0].Path = "/var/a.raw" }, failure.Precondition, []string{"[paths] roots"}},
		"no folder":        {func(w *world, b *quorum.Building) { b.Replicas[0] = w.file("none/a.raw", "raw") }, failure.NotFound, []string{"none"}},
		"a folder":         {func(w *world, b *quorum.Building) { b.Replicas[0] = w.file("etc", "raw") }, failure.Precondition, []string{"neither a block device nor a regular file"}},
		"the source":       {func(w *world, b *quorum.Building) { b.Replicas[1] = w.file("base.raw", "raw") }, failure.Conflict, []string{"base.raw is the source"}},
		"the source, hard": {func(w *world, b *quorum.Building) {
			must(w.T, os.Link(w.path("base.raw"), w.path("link.raw")))
			b.Replicas[1] = w.file("link.raw", "raw")
		}, failure.Conflict, []string{"link.raw is the source"}},
		"one inode": {func(w *world, b *quorum.Building) {
			must(w.T, os.WriteFile(w.path("a.raw"), nil, 0o600))
			must(w.T, os.Link(w.path("a.raw"), w.path("c.raw")))
		}, failure.Conflict, []string{"is also replica r"}},
		"not empty": {func(w *world, b *quorum.Building) {
			must(w.T, os.WriteFile(w.path("c.raw"), []byte("data"), 0o600))
		}, failure.Conflict, []string{"c.raw", "not empty", "--overwrite"}},
		"in use": {func(w *world, b *quorum.Building) {
			must(w.T, os.WriteFile(w.path("c.raw"), []byte("data"), 0o600))
			b.Overwrite = true
			cmd := exec.Command("sleep", "600")
			f, err := os.OpenFile(w.path("c.raw"), os.O_RDWR, 0)
			must(w.T, err)
			cmd.Stdin = f
			must(w.T, cmd.Start())
			w.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = f.Close() })
		}, failure.Conflict, []string{"c.raw is in use by process"}},
		"another set's": {func(w *world, b *quorum.Building) {
			other := w.building()
			other.Name = "other"
			_, err := w.Build(w.Context(), other)
			must(w.T, err)
			b.Overwrite = true
		}, failure.Conflict, []string{"a.raw is replica r1 of replica set other"}},
		"a strange mark": {func(w *world, b *quorum.Building) {
			other := w.building()
			other.Name = "other"
			_, err := w.Build(w.Context(), other)
			must(w.T, err)
			must(w.T, os.Remove(w.path("etc/diskhook/quorum.d/other.json")))
			b.Overwrite = true
		}, failure.Conflict, []string{"it has the mark of another replica set"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			b := w.building()
			c.change(w, &b)
			before := w.files()
			_, err := w.Build(t.Context(), b)
			w.refused(err, c.kind, c.words...)
			if diff := cmp.Diff(before, w.files()); diff != "" {
				t.Errorf("something was changed: %s", diff)
			}
			if _, err := w.Load("db"); failure.KindOf(err) != failure.NotFound {
				t.Errorf("it is defined: %v", err)
			}
		})
	}
}

// files are all files of the world but for locks, with their sizes.
func (w *world) files() map[string]int64 {
	w.Helper()
	all := map[string]int64{}
	must(w.T, filepath.WalkDir(w.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.Contains(path, "/run/diskhook/lock/") {
			return err
		}
		st, err := entry.Info()
		all[path] = st.Size()
		return err
	}))
	return all
}
