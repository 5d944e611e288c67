// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// full mounts a small file system below the world's root.
func (w *world) full(name string) {
	w.Helper()
	if os.Getenv("SKIP_ROOT") == "1" {
		w.Skip("SKIP_ROOT=1")
	}
	dir := w.path(name)
	must(w.T, os.Mkdir(dir, 0o755))
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=2m"); err != nil {
		w.Fatalf("mount tmpfs: %v (needs root; SKIP_ROOT=1 leaves this out)", err)
	}
	w.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// Two replicas of a bit more than 1 MiB do not fit into 2 MiB, one does.
// Nothing is made before that is known.
func TestNoRoom(t *testing.T) {
	w := newWorld(t)
	w.full("small")
	b := w.building()
	b.Replicas = []quorum.Layer{w.file("small/a.raw", "raw"), w.file("small/b.qcow2", "qcow2"), w.file("c.raw", "raw")}
	before := w.files()
	_, explained := w.ExplainBuild(t.Context(), b)
	w.refused(explained, failure.NoSpace, "replica set db: r1, r2: ", " bytes are needed in "+w.path("small")+", 2097152 are free", "name replicas on other file systems")
	_, err := w.Build(t.Context(), b)
	w.refused(err, failure.NoSpace, "r1, r2: ", ", 2097152 are free")
	for path := range w.files() {
		if _, was := before[path]; !was && path != w.path("run/diskhook/lock/quorum-db") {
			t.Errorf("%s was made", path)
		}
	}
	if _, err := w.Load("db"); failure.KindOf(err) != failure.NotFound {
		t.Errorf("it is defined: %v", err)
	}

	// Zeros are holes.
	_, err = w.Build(t.Context(), quorum.Building{Name: "zeros", Threshold: 2, Size: 1 << 30, Replicas: []quorum.Layer{w.file("small/x.raw", "raw"), w.file("y.raw", "raw")}})
	must(t, err)

	b.Replicas[1] = w.file("b.qcow2", "qcow2")
	_, err = w.Build(t.Context(), b)
	must(t, err)
	w.holds(w.flat)

	// What is left there does not do for another one.
	replacing := quorum.Replacing{Old: "r3", New: w.file("small/d.raw", "raw")}
	_, err = w.ExplainReplace(t.Context(), "db", replacing)
	w.refused(err, failure.NoSpace, "replica set db: r4: ", " bytes are needed in "+w.path("small"))
	_, err = w.Replace(t.Context(), "db", replacing)
	w.refused(err, failure.NoSpace, "r4: ")
	if _, err := os.Lstat(w.path("small/d.raw")); !os.IsNotExist(err) {
		t.Errorf("its image was made: %v", err)
	}
	replacing.New = w.file("d.raw", "raw")
	_, err = w.Replace(t.Context(), "db", replacing)
	must(t, err)
}
