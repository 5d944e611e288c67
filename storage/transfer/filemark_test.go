// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/command"
	"diskhook/storage/transfer"
)

// stopLate stops a copy when half of it is done at least, but not all, and
// returns how far its cursor is.
func stopLate(t *testing.T, source transfer.Source, target transfer.Target, o transfer.Options) int64 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.Progress = func(done, total int64) {
		if done >= total/2 {
			cancel()
		}
	}
	if o.Only != transfer.Ranges {
		o.Rate = 24 << 20
	}
	_, err := (&transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond}).Copy(ctx, source, target, o)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped with %v", err)
	}
	done, ok := transfer.Resumable(o.Cursor, source, target)
	if !ok || done == 0 || done == source.Size {
		text, err := os.ReadFile(o.Cursor)
		t.Fatalf("left the cursor %s, %v", text, err)
	}
	return done
}

// change does something to an existing file.
func change(t *testing.T, path string, do func(fd int) error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(do(int(f.Fd())), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func punch(t *testing.T, path string, off, n int64) {
	t.Helper()
	change(t, path, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// A file of the same name, or one that lost data, is not gone on with; after a
// change of nothing that counts it is.
func TestCursorKnowsItsFile(t *testing.T) {
	const size = 48 << 20
	chain, content := build(t, t.TempDir(), []layer{{"raw", size, []step{{0, size, 1}}}})
	source := identified(t, chain)
	for name, c := range map[string]struct {
		harm  func(t *testing.T, path string)
		words string // "" is that it goes on
	}{
		"nothing":       {func(*testing.T, string) {}, ""},
		"another owner": {func(t *testing.T, path string) { tool(t, "chmod", "640", path) }, ""},
		"another name and back": {func(t *testing.T, path string) {
			tool(t, "mv", path, path+"~")
			tool(t, "mv", path+"~", path)
		}, ""},
		"removed and made empty": {func(t *testing.T, path string) {
			tool(t, "mv", path, path+"~") // so that its inode is not taken again
			tool(t, "truncate", "-s", "48M", path)
		}, "another file"},
		"a copy of it": {func(t *testing.T, path string) {
			tool(t, "cp", "-p", path, path+"~")
			tool(t, "mv", path+"~", path)
		}, "another file"},
		"emptied": {func(t *testing.T, path string) {
			tool(t, "truncate", "-s", "0", path)
			tool(t, "truncate", "-s", "48M", path)
		}, "has lost data"},
		"cut off":       {func(t *testing.T, path string) { tool(t, "truncate", "-s", "47M", path) }, "bytes, and had"},
		"a hole in it":  {func(t *testing.T, path string) { punch(t, path, 5<<20, 64<<10) }, "has lost data"},
		"reserved anew": {func(t *testing.T, path string) { punch(t, path, 0, size); tool(t, "fallocate", "-l", "48M", path) }, "has lost data"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "target")
			tool(t, "fallocate", "-l", "48M", path) // as copies are
			target := transfer.Target{Path: path, Size: size, Zeroed: true, ID: "this"}
			o := transfer.Options{Only: transfer.Native, Cursor: path + ".cursor"}
			done := stopLate(t, source, target, o)
			c.harm(t, path)
			if _, ok := transfer.Resumable(o.Cursor, source, target); ok != (c.words == "") {
				t.Errorf("it says that it would resume: %v", ok)
			}
			if name == "cut off" {
				return // the copy refuses so small a file
			}
			var log bytes.Buffer
			engine := transfer.Engine{Run: command.System{}, Log: slog.New(slog.NewTextHandler(&log, nil))}
			result, err := engine.Copy(t.Context(), source, target, o)
			if err != nil {
				t.Fatal(err)
			}
			if c.words == "" {
				if result.Resumed != done {
					t.Errorf("resumed at %d, want %d: %s", result.Resumed, done, log.String())
				}
			} else if result.Resumed != 0 || !strings.Contains(log.String(), c.words) {
				t.Errorf("resumed %d, log: %s", result.Resumed, log.String())
			}
			expect(t, path, content)
		})
	}
}

// What the target has from its beginning counts as well, wherever the cursor is.
func TestCursorKnowsWhatItsFileHadBefore(t *testing.T) {
	const size, base = 192 << 20, 190 << 20 // ranges are 64 MiB
	for _, method := range []transfer.Method{transfer.Native, transfer.Ranges} {
		for name, at := range map[string]int64{"nothing": -1, "behind the cursor": 180 << 20} {
			t.Run(string(method)+", "+name, func(t *testing.T) {
				chain, content := build(t, t.TempDir(), []layer{
					{"raw", base, []step{{0, base, 1}}},
					{"qcow2", size, []step{{0, 128 << 20, 2}, {150 << 20, 4 << 20, 0}, {190 << 20, 1 << 20, 3}}},
				})
				source := identified(t, chain)
				source.Present = 1
				path := filepath.Join(t.TempDir(), "target")
				tool(t, "cp", chain[1].Path, path)
				tool(t, "truncate", "-s", "192M", path)
				target := transfer.Target{Path: path, Size: size, Zeroed: true, ID: "this"}
				o := transfer.Options{Only: method, Cursor: path + ".cursor"}
				done := stopLate(t, source, target, o)
				if at >= 0 {
					punch(t, path, at, 64<<10)
				}
				result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
				if err != nil {
					t.Fatal(err)
				}
				if want := map[bool]int64{true: 0, false: done}[at >= 0]; result.Resumed != want {
					t.Errorf("resumed at %d, want %d", result.Resumed, want)
				}
				expect(t, path, content)
			})
		}
	}
}

// A compressed image of a size below a gigabyte goes on somewhere in it.
func TestSmallCompressedCopyGoesOn(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"raw", 192 << 20, []step{{0, 192 << 20, 1}}}})
	packed := filepath.Join(dir, "packed.qcow2")
	tool(t, "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", chain[0].Path, packed)
	chain[0].Path, chain[0].Format = packed, "qcow2"
	source := identified(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: source.Size, Zeroed: true, ID: "this"}
	o := transfer.Options{Cursor: filepath.Join(dir, "cursor"), Only: transfer.Ranges}
	done := stopLate(t, source, target, o)
	o.Only = ""
	result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
	if err != nil || done < 64<<20 || result.Resumed != done {
		t.Fatalf("%+v after %d, %v", result, done, err)
	}
	expect(t, target.Path, content)
}

// A count of data that the page cache has a part in would fall when the cache
// goes, and the copy begin again for nothing.
func TestDataIsCountedWithoutTheCache(t *testing.T) {
	const size, hole = 4 << 20, 256 << 10
	content := bytes.Repeat([]byte("x"), size)
	for i := range int64(30) {
		f, err := os.Create(filepath.Join(t.TempDir(), "target"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		synced := make(chan error)
		go func() { synced <- f.Sync() }() // while pages are written back, folios are not split
		if err := blockdev.ZeroRange(t.Context(), f, 4096*(1+7*i), hole); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(<-synced, f.Sync()); err != nil {
			t.Fatal(err)
		}
		before := transfer.DataIn(f, size)
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if after := transfer.DataIn(f, size); after != before {
			t.Fatalf("%d bytes of data, and %d without the cache", before, after)
		}
	}
}
