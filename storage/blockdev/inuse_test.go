// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
)

// hold starts a process that has path open until the test ends.
func hold(t *testing.T, path string) int {
	t.Helper()
	proc := exec.Command("sh", "-c", `exec 7<"$1"; echo ready; read x`, "sh", path)
	in, err := proc.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := proc.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = proc.Wait() })
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	return proc.Process.Pid
}

func wantFree(t *testing.T, path string) {
	t.Helper()
	if holder, used, err := InUse(path); used || err != nil {
		t.Fatalf("%s: in use %v by %q, %v", path, used, holder, err)
	}
}

func wantHolder(t *testing.T, path, want string) {
	t.Helper()
	holder, used, err := InUse(path)
	if !used || err != nil || !strings.Contains(holder, want) {
		t.Errorf("%s: in use %v by %q, %v; want %q", path, used, holder, err, want)
	}
}

func TestInUseFile(t *testing.T) {
	file := pattern(t, 4096)
	wantFree(t, file)
	// By another name: what counts is the inode.
	other := filepath.Join(filepath.Dir(file), "other")
	if err := os.Link(file, other); err != nil {
		t.Fatal(err)
	}
	pid := hold(t, other)
	wantHolder(t, file, fmt.Sprintf("process %d (sh)", pid))
	if _, _, err := InUse(file + "x"); !errors.Is(err, failure.NotFound) {
		t.Errorf("no file: %v", err)
	}
	if _, _, err := InUse(filepath.Dir(file)); !errors.Is(err, failure.Precondition) {
		t.Errorf("a directory: %v", err)
	}
}

// Who cannot look at every process does not say "nobody".
func TestOpened(t *testing.T) {
	file := pattern(t, 4096)
	if holder, open, err := Opened(file); open || err != nil {
		t.Errorf("by %q, %v", holder, err)
	}
	want := fmt.Sprintf("process %d (sh)", hold(t, file))
	if holder, open, err := Opened(file); !open || holder != want || err != nil {
		t.Errorf("%v by %q, %v; want %q", open, holder, err, want)
	}
	if _, _, err := Opened(file + "-not"); !errors.Is(err, failure.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestInUseWithoutProc(t *testing.T) {
	file := pattern(t, 4096)
	wantFree(t, file) // the kernel itself says so: nobody has it open
	open(t, file)     // from here on only /proc could tell that it is just us
	// Descriptors that cannot be looked at: a link to itself cannot be followed.
	hidden := t.TempDir()
	if err := os.MkdirAll(filepath.Join(hidden, "42/fd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("3", filepath.Join(hidden, "42/fd/3")); err != nil {
		t.Fatal(err)
	}
	for name, proc := range map[string]string{
		"no /proc": filepath.Join(t.TempDir(), "none"), "empty /proc": t.TempDir(), "hidden process": hidden,
	} {
		holder, used, err := system{proc: proc, sys: "/sys"}.inUse(file)
		if used || !errors.Is(err, ErrUnknownUse) {
			t.Errorf("%s: in use %v by %q, %v", name, used, holder, err)
		}
	}
}

func TestHolders(t *testing.T) {
	sys := t.TempDir()
	for path, content := range map[string]string{
		"dev/block/7:3/holders/dm-4": "", "dev/block/7:4/holders/.keep": "", "block/dm-4/dm/name": "vg-a_tdata\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sys, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(sys, "dev/block/7:4/holders/.keep")); err != nil {
		t.Fatal(err)
	}
	s := system{sys: sys}
	for minor, want := range map[uint32]string{3: "device dm-4 (vg-a_tdata)", 4: "", 5: ""} {
		if got, err := s.holders("", identity{block: true, major: 7, min: minor}); err != nil || got != want {
			t.Errorf("7:%d: %q, %v, want %q", minor, got, err, want)
		}
	}
}
