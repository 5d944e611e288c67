// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// No file system gives a directory a second name, as some give none to files:
// what is exported gets its name all the same, and takes nobody's place.
func TestGiveNameNeedsNoLinks(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Mkdir(at("partial"), 0o700), os.WriteFile(at("theirs"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := giveName(at("partial"), at("theirs")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	if b, err := os.ReadFile(at("theirs")); err != nil || string(b) != "x" {
		t.Errorf("what was there: %q, %v", b, err)
	}
	if err := giveName(at("partial"), at("named")); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(at("named")); err != nil || !st.IsDir() {
		t.Errorf("named: %v", err)
	}
}
