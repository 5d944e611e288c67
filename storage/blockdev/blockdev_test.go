// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// pattern makes a file of 0xaa.
func pattern(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("\xaa", int(size))), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestKindAndSizeOfFiles(t *testing.T) {
	file := pattern(t, 12345)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]Kind{file: Regular, link: Regular, filepath.Dir(file): Other, "/dev/null": Other} {
		if got, err := KindOf(path); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", path, got, err, want)
		}
	}
	if _, err := KindOf(file + "x"); !errors.Is(err, failure.NotFound) {
		t.Errorf("no file: %v", err)
	}
	if got, err := Size(open(t, file)); err != nil || got != 12345 {
		t.Errorf("size %d, %v", got, err)
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got, err := Size(dir); !errors.Is(err, failure.Precondition) {
		t.Errorf("size of a directory: %d, %v", got, err)
	}
}

// A regular file below /dev is what a write to a node that is not there
// leaves; it must not be waited for or written to.
func TestWaitNodeRefusesFilesAtOnce(t *testing.T) {
	began := time.Now()
	_, err := WaitNode(t.Context(), pattern(t, 4096))
	if failure.KindOf(err) != failure.Precondition || time.Since(began) > time.Minute {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestKinded(t *testing.T) {
	for errno, want := range map[error]*failure.Kind{
		unix.EBUSY: failure.Conflict, unix.ENOSPC: failure.NoSpace, unix.EDQUOT: failure.NoSpace, unix.ENOENT: failure.NotFound, unix.EIO: nil,
	} {
		if got := failure.KindOf(kinded(errno)); got != want {
			t.Errorf("%v is of kind %v, want %v", errno, got, want)
		}
	}
}
