// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/transfer"
)

// slow is a source of 64 MiB that takes two minutes at the rate slowly.
func slow(t *testing.T, dir string) transfer.Source {
	t.Helper()
	chain, _ := build(t, dir, []layer{{"raw", 64 << 20, []step{{0, 64 << 20, 1}}}})
	return inspect(t, chain)
}

const slowly = 1 << 19

// The writer inherits the lock: it is held when the one who took it has gone,
// and free as soon as the writer was killed.
func TestCancelKillsTheWriterAndFreesTheLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := slow(t, dir)
	held, err := lock.Try(dir, "disk")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	why := errors.New("somebody asked")
	released := make(chan bool, 1)
	options := transfer.Options{Rate: slowly, Locks: []*os.File{held.File()}, Progress: func(done, _ int64) {
		if done == 0 || len(released) > 0 {
			return
		}
		held.Release()
		still, err := lock.Held(dir, "disk")
		released <- still && err == nil
		cancel(why)
	}}
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: source.Size}
	began := time.Now()
	_, err = (&transfer.Engine{Run: command.System{}}).Copy(ctx, source, target, options)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
	if !<-released {
		t.Error("the writer did not hold the lock")
	}
	if still, err := lock.Held(dir, "disk"); still || err != nil {
		t.Errorf("after the end the lock is held: %t, %v", still, err)
	}
	if _, err := os.Lstat(target.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished file is left: %v", err)
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"raw", 8 << 20, []step{{0, 8 << 20, 1}}}})
	began := time.Now()
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 8 << 20}
	if _, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), inspect(t, chain), target, transfer.Options{Rate: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	// The first slice of time is free.
	if took := time.Since(began); took < time.Second || took > time.Minute {
		t.Errorf("8 MiB at 4 MiB/s took %v", took)
	}
	expect(t, target.Path, content)
}

// small mounts a file system of 4 MiB.
func small(t *testing.T) string {
	t.Helper()
	if os.Getenv("SKIP_ROOT") == "1" {
		t.Skip("SKIP_ROOT=1")
	}
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mount tmpfs: %v (needs root; SKIP_ROOT=1 leaves this out)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestFullTarget(t *testing.T) {
	source, full := slow(t, t.TempDir()), small(t)
	target := transfer.Target{Path: filepath.Join(full, "target"), Size: source.Size}
	engine := transfer.Engine{Run: command.System{}}
	_, err := engine.Copy(t.Context(), source, target, transfer.Options{})
	if failure.KindOf(err) != failure.NoSpace || failure.HintOf(err) == "" || !strings.Contains(err.Error(), target.Path) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(target.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished file is left: %v", err)
	}
}

// A device that fails to write never yields a nil error.
func TestFailingDevice(t *testing.T) {
	source, full := slow(t, t.TempDir()), small(t)
	file := filepath.Join(full, "device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, source.Size); err != nil {
		t.Fatal(err)
	}
	target := transfer.Target{Path: loop(t, file), Block: true, Zeroed: true, Size: source.Size}
	if _, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{}); err == nil {
		t.Error("no error")
	}
}

// A FIFO in the place of an image, and a context that has ended.
func TestNothingToWaitFor(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	engine := transfer.Engine{Run: command.System{}}
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 4096}
	began := time.Now()
	_, err := engine.Copy(t.Context(), transfer.Source{Layers: []imagecheck.Layer{{Path: fifo, Format: "raw"}}, Size: 4096}, target, transfer.Options{})
	if failure.KindOf(err) != failure.Precondition {
		t.Errorf("FIFO: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	chain, _ := build(t, dir, []layer{{"raw", 4096, nil}})
	if _, err := engine.Copy(ended, inspect(t, chain), target, transfer.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
}

// Another user reads what only that user may, and owns the file that is made.
func TestCopyAsUser(t *testing.T) {
	if os.Getenv("SKIP_ROOT") == "1" {
		t.Skip("SKIP_ROOT=1")
	}
	dir, err := os.MkdirTemp("/var/tmp", "transfer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	chain, content := build(t, dir, []layer{{"raw", 1 << 20, []step{{512, 512, 7}}}})
	source := inspect(t, chain)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(chain[0].Path, 0o600), os.Chown(chain[0].Path, 12345, 12345)); err != nil {
		t.Fatalf("%v (needs root; SKIP_ROOT=1 leaves this out)", err)
	}
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 1 << 20}
	engine := transfer.Engine{Run: command.System{}}
	if _, err := engine.Copy(t.Context(), source, target, transfer.Options{User: &command.Credential{UID: 12345, GID: 12345}}); err != nil {
		t.Fatal(err)
	}
	expect(t, target.Path, content)
	var st unix.Stat_t
	if err := unix.Stat(target.Path, &st); err != nil || st.Uid != 12345 || st.Mode&0o777 != 0o600 {
		t.Errorf("owner %d, mode %o, %v", st.Uid, st.Mode&0o777, err)
	}
	// Through descriptors it is the same, even where the user no longer gets
	// at the path.
	user := &command.Credential{UID: 12345, GID: 12345}
	opened, err := imagecheck.Checker{Allowed: filepath.EvalSymlinks, User: user}.Open(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := os.Rename(chain[0].Path, chain[0].Path+".away"); err != nil {
		t.Fatal(err)
	}
	second := transfer.Target{Path: target.Path + "3", Size: 1 << 20}
	if _, err := engine.Copy(t.Context(), transfer.Source{Layers: chain, Size: opened.VirtualSize, Files: opened.Files}, second, transfer.Options{User: user}); err != nil {
		t.Fatal(err)
	}
	expect(t, second.Path, content)
	if err := os.Rename(chain[0].Path+".away", chain[0].Path); err != nil {
		t.Fatal(err)
	}
	// A user who may not read it does not.
	_, err = engine.Copy(t.Context(), source, transfer.Target{Path: target.Path + "2", Size: 1 << 20}, transfer.Options{User: &command.Credential{UID: 54321, GID: 54321}})
	if failure.KindOf(err) != failure.Precondition {
		t.Errorf("got %v", err)
	}
}

// An existing file keeps its place when a copy into it fails: only what Copy
// made is removed.
func TestExistingFileIsLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "target")
	fillFile(t, path, 4096)
	source := transfer.Source{Layers: []imagecheck.Layer{{Path: filepath.Join(dir, "missing"), Format: "raw"}}, Size: 4096}
	_, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, transfer.Target{Path: path, Size: 4096}, transfer.Options{})
	if failure.KindOf(err) != failure.NotFound {
		t.Errorf("got %v", err)
	}
	expect(t, path, oldBytes(4096))
	if entries, err := os.ReadDir(dir); err != nil || fmt.Sprint(entries) != "[- target]" {
		t.Errorf("left: %v, %v", entries, err)
	}
}
