// SPDX-License-Identifier: Apache-2.0

package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/failure"
)

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	odd := errors.New("odd")
	if err := New(path, func(w io.Writer) error { return errors.Join(text("x")(w), odd) }); !errors.Is(err, odd) || len(names(t, dir)) != 0 {
		t.Fatalf("%v, %q", err, names(t, dir))
	}
	if err := New(path, text("whole")); err != nil {
		t.Fatal(err)
	}
	if err := New(path, text("other")); !errors.Is(err, failure.Conflict) || failure.HintOf(err) == "" {
		t.Error(err)
	}
	if err := New(filepath.Join(dir, "later"), func(w io.Writer) error { return os.WriteFile(filepath.Join(dir, "later"), []byte("theirs"), 0o600) }); !errors.Is(err, os.ErrExist) {
		t.Errorf("taken meanwhile: %v", err)
	}
	for name, want := range map[string]string{"file": "whole", "later": "theirs"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if all := names(t, dir); len(all) != 2 {
		t.Errorf("%q", all)
	}
}

// Where files need a name from the start, what is left of programs that were killed goes
// with the next one; what somebody writes, or made otherwise, stays.
func TestUnfinishedFiles(t *testing.T) {
	dir := t.TempDir()
	killed, err := hidden(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Close(); err != nil { // as the kernel does
		t.Fatal(err)
	}
	mine := unfinished + "11111111-1111-4111-8111-111111111111"
	if err := errors.Join(os.Mkdir(filepath.Join(dir, mine), 0o700), os.WriteFile(filepath.Join(dir, unfinished+"song"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	going, err := hidden(dir)
	if err != nil {
		t.Fatal(err)
	}
	another, err := hidden(dir)
	if err != nil {
		t.Fatal(err)
	}
	if all := names(t, dir); len(all) != 4 {
		t.Errorf("%q", all)
	}
	odd := errors.New("odd")
	if err := another.finish(filepath.Join(dir, "odd"), func(io.Writer) error { return odd }); !errors.Is(err, odd) {
		t.Error(err)
	}
	if err := going.finish(filepath.Join(dir, "file"), text("whole")); err != nil {
		t.Error(err)
	}
	if all := names(t, dir); len(all) != 3 {
		t.Errorf("%q", all)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "whole" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
