// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package transfer_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/transfer"
)

// Stopped between any two steps, Copy reports it; a target that existed holds
// the part that is done, and one that was made is gone.
func TestStoppedBetweenSteps(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	t.Setenv("DISKHOOK_FAILPOINT_LOG", log)
	chain, content := build(t, dir, []layer{{"qcow2", 1 << 20, []step{{0, 512, 1}}}})
	source := inspect(t, chain)
	engine := transfer.Engine{Run: command.System{}}
	copyTo := func(path string) error {
		_, err := engine.Copy(t.Context(), source, transfer.Target{Path: path, Size: 2 << 20}, transfer.Options{})
		return err
	}
	if err := copyTo(filepath.Join(dir, "whole")); err != nil {
		t.Fatal(err)
	}
	passed, err := os.ReadFile(log)
	if want := "transfer.begun\ntransfer.chunk\ntransfer.converted\ntransfer.zeroed\ntransfer.flushed\n"; err != nil || string(passed) != want {
		t.Fatalf("passed %q, want %q, %v", passed, want, err)
	}
	for _, point := range strings.Fields(string(passed)) {
		t.Setenv("DISKHOOK_FAILPOINT", point+"=error")
		made, there := filepath.Join(dir, "made"), filepath.Join(dir, "there."+point)
		fillFile(t, there, 2<<20)
		for _, path := range []string{made, there} {
			if err := copyTo(path); !errors.Is(err, failpoint.ErrInjected) {
				t.Errorf("%s: %v", point, err)
			}
		}
		if _, err := os.Lstat(made); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left %v", point, err)
		}
		want := append(bytes.Clone(content), make([]byte, 1<<20)...)
		switch point {
		case "transfer.begun":
			want = oldBytes(2 << 20)
		case "transfer.chunk", "transfer.converted":
			copy(want[1<<20:], oldBytes(1<<20))
		}
		expect(t, there, want)
	}
}
