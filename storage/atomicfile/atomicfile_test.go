// SPDX-License-Identifier: Apache-2.0

package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"diskhook/storage/atomicfile"
)

func TestWriteGivesTheModeWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "f")
	for _, write := range []func(string, []byte, os.FileMode) error{atomicfile.Write, atomicfile.WriteVolatile} {
		if err := write(path, []byte("new"), 0o644); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o644 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
	}
	deep := filepath.Join(t.TempDir(), "a", "b")
	if err := atomicfile.MkdirAll(deep, 0o711); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(deep); st.Mode().Perm() != 0o711 {
		t.Errorf("directory mode %v", st.Mode())
	}
}

// A write that fails leaves the old content, and nothing beside it.
func TestFailedWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "busy"), 0o755); err != nil { // a directory cannot be replaced by a file
		t.Fatal(err)
	}
	for _, write := range []func(string, []byte, os.FileMode) error{atomicfile.Write, atomicfile.WriteVolatile} {
		if err := write(path, []byte("new"), 0o644); err == nil {
			t.Fatal("a file replaced a directory")
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestRemoveTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := atomicfile.WriteJSON(path, map[string]int{"a": 1}, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := atomicfile.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// No file system gives a directory a second name, as some give none to files:
// what is named gets its name all the same, and takes nobody's place.
func TestNameNeedsNoLinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Mkdir(at("partial"), 0o700), os.WriteFile(at("theirs"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Name(at("partial"), at("theirs")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	if b, err := os.ReadFile(at("theirs")); err != nil || string(b) != "x" {
		t.Errorf("what was there: %q, %v", b, err)
	}
	if err := atomicfile.Name(at("partial"), at("named")); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(at("named")); err != nil || !st.IsDir() {
		t.Errorf("named: %v", err)
	}
}
