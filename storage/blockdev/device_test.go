// SPDX-License-Identifier: Apache-2.0

//go:build integration

package blockdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
)

// These tests need root and loop devices.

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
	if took := time.Since(began); took < 90*time.Millisecond || took > time.Minute {
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

func TestZeroRangeOfDevices(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		for _, r := range ranges {
			t.Run(sector+" "+r.name, func(t *testing.T) {
				device, file := loopDevice(t, 1<<20, sector)
				f := open(t, device)
				// Dirty pages of before must neither survive nor spoil the rest.
				if _, err := f.WriteAt(bytes.Repeat([]byte{0xaa}, 1<<20), 0); err != nil {
					t.Fatal(err)
				}
				if err := ZeroRange(t.Context(), f, r.off, r.n); err != nil {
					t.Fatal(err)
				}
				through := make([]byte, 1<<20)
				if _, err := f.ReadAt(through, 0); err != nil {
					t.Fatal(err)
				}
				checkZeros(t, through, r.off, r.n)
				if err := Flush(f); err != nil {
					t.Fatal(err)
				}
				below, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				checkZeros(t, below, r.off, r.n)
			})
		}
	}
}

func TestDiscardRangeOfADevice(t *testing.T) {
	device, file := loopDevice(t, 4<<20, "512")
	f := open(t, device)
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := DiscardRange(t.Context(), f, 1<<20, 2<<20); err != nil {
		t.Fatal(err)
	}
	clear(want[1<<20 : 3<<20]) // a loop device punches a hole
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other bytes than those of the range changed: %v", err)
	}
}

// More than one chunk, so that the seam between chunks is seen.
func TestZeroRangeOverChunks(t *testing.T) {
	const size = zeroChunk + 1<<20
	device, file := loopDevice(t, size, "512")
	f := open(t, device)
	if err := ZeroRange(t.Context(), f, 512, size-1024); err != nil {
		t.Fatal(err)
	}
	if err := Flush(f); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexFunc(b[512:size-512], func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("byte %d is not zero", 512+i)
	}
	if !bytes.Equal(b[:512], bytes.Repeat([]byte{0xaa}, 512)) || !bytes.Equal(b[size-512:], bytes.Repeat([]byte{0xaa}, 512)) {
		t.Error("a byte outside the range changed")
	}
}

func TestInUseDevice(t *testing.T) {
	device, file := loopDevice(t, 1<<20, "512")
	wantFree(t, device)
	own := open(t, device) // our own descriptor does not count
	wantFree(t, device)
	own.Close()
	wantHolder(t, file, "device "+filepath.Base(device))
	t.Run("process", func(t *testing.T) {
		// By another node, as QEMU has in a /dev of its own.
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(device, link); err != nil {
			t.Fatal(err)
		}
		pid := hold(t, link)
		wantHolder(t, device, fmt.Sprintf("process %d (sh)", pid))
	})
	t.Run("claim", func(t *testing.T) {
		f, err := OpenExclusive(device)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		wantHolder(t, device, "claim")
	})
	wantFree(t, device)
}

func TestInUseLoopOverADevice(t *testing.T) {
	lower, _ := loopDevice(t, 1<<20, "512")
	upper := loopOver(t, lower, "512")
	wantHolder(t, lower, "device "+filepath.Base(upper))
}
