// SPDX-License-Identifier: Apache-2.0

package lock_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/lock"
)

// The process that took a lock is named, and when it gave its share up the one
// that inherited it; whoever only shares the lock, or has its file open, is not.
func TestHolderOf(t *testing.T) {
	dir := t.TempDir()
	shared, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	if err := unix.Flock(int(shared.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if h, held := lock.HolderOf(dir, "disk"); held {
		t.Errorf("%+v only shares it", h)
	}
	if err := unix.Flock(int(shared.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	l, err := lock.Try(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("sleep", "1000")
	child.ExtraFiles = []*os.File{l.File()}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	if h, held := lock.HolderOf(dir, "disk"); !held || h.PID != os.Getpid() || !slices.Equal(h.Argv, os.Args) {
		t.Errorf("%v %+v", held, h)
	}
	l.Release()
	// A process that has just called execve has no arguments for a moment.
	for h, _ := lock.HolderOf(dir, "disk"); h.PID == child.Process.Pid && h.Argv == nil; h, _ = lock.HolderOf(dir, "disk") {
		time.Sleep(time.Millisecond)
	}
	if h, held := lock.HolderOf(dir, "disk"); !held || h.PID != child.Process.Pid || !slices.Equal(h.Argv, []string{"sleep", "1000"}) {
		t.Errorf("inherited: %v %+v", held, h)
	}
	if h, held := lock.HolderOf(t.TempDir(), "disk"); held {
		t.Errorf("%+v has another folder's", h)
	}
}
