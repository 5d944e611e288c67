// SPDX-License-Identifier: Apache-2.0

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// needLoop fails a test that cannot have loop devices, unless SKIP_LOOP=1.
func needLoop(t *testing.T) {
	t.Helper()
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root for loop devices; SKIP_LOOP=1 skips it")
	}
}

// loopDevice returns a loop device of size bytes of 0xaa, with the given
// logical block size, and the file below it.
func loopDevice(t *testing.T, size int64, sector string) (device, file string) {
	t.Helper()
	needLoop(t)
	file = pattern(t, size)
	return loopOver(t, file, sector), file
}

func loopOver(t *testing.T, file, sector string) string {
	t.Helper()
	out, err := exec.Command("losetup", "-f", "--show", "--sector-size", sector, file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", device, err, out)
		}
	})
	return device
}

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

func TestKindAndSizeOfDevices(t *testing.T) {
	device, _ := loopDevice(t, 3<<20, "512")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{device, link} {
		if got, err := KindOf(path); err != nil || got != Block {
			t.Errorf("%s: %s, %v", path, got, err)
		}
		if got, err := Size(open(t, path)); err != nil || got != 3<<20 {
			t.Errorf("%s: size %d, %v", path, got, err)
		}
	}
}

func TestFlush(t *testing.T) {
	device, file := loopDevice(t, 1<<20, "512")
	f := open(t, device)
	if _, err := f.WriteAt([]byte("hello"), 4096); err != nil {
		t.Fatal(err)
	}
	if err := Flush(f); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b[4095:4102]); got != "\xaahello\xaa" {
		t.Errorf("the backing file has %q", got)
	}
	f.Close()
	if err := Flush(f); err == nil || !strings.Contains(err.Error(), device+": flush") {
		t.Errorf("flush of a closed device: %v", err)
	}
}

// A device whose file cannot grow takes writes into its page cache and loses
// them: only the flush says so.
func TestFlushReportsLostWrites(t *testing.T) {
	needLoop(t)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, 0); err != nil {
			t.Error(err)
		}
	})
	f := open(t, loopOver(t, sparse(t, full, 4<<20), "512"))
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 2<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := Flush(f); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("lost writes, and the flush says %v", err)
	}
}

func sparse(t *testing.T, dir string, size int64) string {
	t.Helper()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestOpenExclusive(t *testing.T) {
	device, _ := loopDevice(t, 1<<20, "512")
	f, err := OpenExclusive(device)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := OpenExclusive(device); !errors.Is(err, failure.Conflict) {
		t.Errorf("claimed twice: %v, %v", second, err)
	}
	f.Close()
	f, err = OpenExclusive(device)
	if err != nil {
		t.Fatalf("claimed again: %v", err)
	}
	f.Close()

	file := pattern(t, 4096)
	f, err = OpenExclusive(file)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := OpenExclusive(filepath.Dir(file)); !errors.Is(err, failure.Precondition) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := OpenExclusive(file + "x"); !errors.Is(err, failure.NotFound) {
		t.Errorf("nothing: %v", err)
	}
}

func TestWaitNode(t *testing.T) {
	device, _ := loopDevice(t, 2<<20, "512")
	link := filepath.Join(t.TempDir(), "lv")
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = os.Symlink(device+"-gone", link+"2") // dangling first, as udev's links may be
		_ = os.Symlink(device, link)
	}()
	began := time.Now()
	size, err := WaitNode(t.Context(), link)
	if err != nil || size != 2<<20 {
		t.Errorf("size %d, %v", size, err)
	}
	if took := time.Since(began); took < 90*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if size, err := WaitNode(t.Context(), device); err != nil || size != 2<<20 {
		t.Errorf("a node that is there: size %d, %v", size, err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = WaitNode(ctx, link+"2")
	if failure.KindOf(err) != failure.Temporary || !errors.Is(err, context.DeadlineExceeded) || failure.HintOf(err) == "" {
		t.Errorf("a dangling link: %v", err)
	}
}

// A regular file below /dev is what a write to a node that is not there
// leaves; it must not be waited for or written to.
func TestWaitNodeRefusesFilesAtOnce(t *testing.T) {
	began := time.Now()
	_, err := WaitNode(t.Context(), pattern(t, 4096))
	if failure.KindOf(err) != failure.Precondition || time.Since(began) > time.Second {
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
