// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lock"
	"diskhook/storage/transfer"
)

// What hangs in the kernel is left behind when the context ends, and writes
// nothing when it comes back. A write keeps the lock of the target until it is
// over; a read does not keep the next try from it.
func TestHungStorage(t *testing.T) {
	for _, writes := range []bool{false, true} {
		t.Run(fmt.Sprintf("writes=%t", writes), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			chain, content := build(t, dir, []layer{{"raw", 40 << 20, []step{{0, 40 << 20, 1}}}})
			source := identified(t, chain)
			target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 40 << 20, ID: "this"}
			fillFile(t, target.Path, target.Size)
			held, err := lock.Try(dir, "disk")
			if err != nil {
				t.Fatal(err)
			}
			gate, calls := make(chan struct{}), new(atomic.Int32)
			engine := transfer.Engine{Run: command.System{}, CursorEvery: time.Millisecond}
			if writes {
				engine.BeforeWrite(func() { wait(calls, gate) })
			} else {
				engine.ReadThrough(func(r io.ReaderAt) io.ReaderAt { return spy{r, func() { wait(calls, gate) }} })
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			o := transfer.Options{Locks: []*os.File{held.File()}, Cursor: filepath.Join(dir, "cursor")}
			began := time.Now()
			_, err = engine.Copy(ctx, source, target, o)
			if failure.KindOf(err) != failure.Temporary || !errors.Is(err, context.DeadlineExceeded) || failure.HintOf(err) == "" {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %v", took)
			}
			held.Release()
			if still, err := lock.Held(dir, "disk"); still != writes || err != nil {
				t.Errorf("the lock is held: %t, %v", still, err)
			}
			before, err := os.ReadFile(target.Path)
			if err != nil {
				t.Fatal(err)
			}
			again := transfer.Engine{Run: command.System{}}
			o.Locks = nil
			if !writes { // the next try goes on at once
				if _, err := again.Copy(t.Context(), source, target, o); err != nil {
					t.Fatal(err)
				}
				before = content
			} else if _, err := again.Copy(t.Context(), source, target, o); failure.KindOf(err) != failure.Conflict {
				t.Errorf("beside a write that hangs: %v", err)
			}
			close(gate)
			for range 300 {
				if still, _ := lock.Held(dir, "disk"); !still {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if !writes {
				time.Sleep(100 * time.Millisecond) // for what came back to do harm
				expect(t, target.Path, before)
				return
			}
			if _, err := again.Copy(t.Context(), source, target, o); err != nil {
				t.Fatal(err)
			}
			expect(t, target.Path, content)
		})
	}
}

// wait hangs from the thirteenth call on, until the gate is open.
func wait(calls *atomic.Int32, gate chan struct{}) {
	if calls.Add(1) > 12 {
		<-gate
	}
}

// failing fails from an offset on, once everything before it is copied.
type failing struct {
	io.ReaderAt
	from   int64
	copied *atomic.Int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= f.from {
		return f.ReaderAt.ReadAt(p, off)
	}
	for range 1000 {
		if f.copied.Load() >= f.from {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	return 0, unix.EIO
}

// A source that fails ends the copy with what was copied before it; when the
// source is well again that is not copied twice.
func TestFailingSource(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"raw", 40 << 20, []step{{0, 40 << 20, 1}}}})
	source := identified(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 40 << 20, Zeroed: true, ID: "this"}
	var copied atomic.Int64
	o := transfer.Options{Cursor: filepath.Join(dir, "cursor"), Progress: func(done, _ int64) { copied.Store(done) }}
	engine := transfer.Engine{Run: command.System{}}
	engine.ReadThrough(func(r io.ReaderAt) io.ReaderAt { return failing{r, 30 << 20, &copied} })
	if _, err := engine.Copy(t.Context(), source, target, o); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "of the source") {
		t.Errorf("got %v", err)
	}
	result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, o)
	if err != nil || result.Resumed != 28<<20 {
		t.Errorf("%+v, %v", result, err)
	}
	expect(t, target.Path, content)
}

// A real device that fails: its file is cut off.
func TestFailingSourceDevice(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"raw", 16 << 20, []step{{0, 16 << 20, 1}}}})
	file := chain[0].Path
	chain[0].Path = loop(t, file)
	source := inspect(t, chain)
	if err := os.Truncate(file, 8<<20); err != nil {
		t.Fatal(err)
	}
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 16 << 20}
	_, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{})
	if !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(target.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished file is left: %v", err)
	}
}

// Clusters that lie beyond the end of their file read as zeros, as in QEMU.
func TestClustersBeyondTheEnd(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"qcow2", 4 << 20, []step{{0, 1 << 20, 1}, {2 << 20, 1 << 20, 2}}}})
	st, err := os.Stat(chain[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(chain[0].Path, st.Size()-(512<<10)-700); err != nil {
		t.Fatal(err)
	}
	clear(content[2<<20+(512<<10)-700 : 3<<20])
	source := inspect(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 4 << 20}
	fillFile(t, target.Path, target.Size)
	var log bytes.Buffer
	engine := transfer.Engine{Run: command.System{}, Log: slog.New(slog.NewTextHandler(&log, nil))}
	if _, err := engine.Copy(t.Context(), source, target, transfer.Options{Only: transfer.Native}); err != nil {
		t.Fatal(err)
	}
	expect(t, target.Path, content)
	equal(t, chain, target.Path, target.Size)
	if want := fmt.Sprintf("%s: was cut off, or has reserved clusters: %d bytes", chain[0].Path, 512<<10); !strings.Contains(log.String(), want) {
		t.Errorf("%q is missing in %s", want, log.String())
	}
}

// Without a table a disk would read as if nothing had ever been written to it.
func TestTablesBeyondTheEnd(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2:cluster_size=4k", 8 << 20, []step{{0, 1 << 20, 1}, {4 << 20, 1 << 20, 2}}}})
	if err := os.Truncate(chain[0].Path, 1<<20); err != nil {
		t.Fatal(err)
	}
	source := inspect(t, chain)
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 8 << 20}
	_, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{})
	if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), "was cut off: it has 1048576 bytes") || !strings.Contains(failure.HintOf(err), "qemu-img check "+chain[0].Path) {
		t.Errorf("got %v, hint %q", err, failure.HintOf(err))
	}
	if _, err := os.Lstat(target.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished file is left: %v", err)
	}
}

// A source that is written to, cut off or longer meanwhile is no copy.
func TestSourceChangesMeanwhile(t *testing.T) {
	for name, change := range map[string]func(f *os.File) error{
		"written":   func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 5); return err },
		"truncated": func(f *os.File) error { return f.Truncate(1 << 20) },
		"grown":     func(f *os.File) error { return f.Truncate(64 << 20) },
	} {
		for _, method := range []transfer.Method{transfer.Native, transfer.Whole} {
			t.Run(name+" by "+string(method), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				chain, _ := build(t, dir, []layer{{"raw", 32 << 20, []step{{0, 32 << 20, 1}}}})
				var changed atomic.Bool
				o := transfer.Options{Only: method, Progress: func(done, _ int64) {
					if done == 0 || changed.Swap(true) {
						return
					}
					f, err := os.OpenFile(chain[0].Path, os.O_WRONLY, 0)
					if err == nil {
						err = errors.Join(change(f), f.Close())
					}
					if err != nil {
						t.Error(err)
					}
				}}
				target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 32 << 20}
				_, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), inspect(t, chain), target, o)
				if failure.KindOf(err) != failure.Conflict || !strings.Contains(err.Error(), "changed while it was copied") {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// Compressed clusters and subclusters are read by qemu-img, whatever else is
// in the chain, and resumed by ranges.
func TestWhatQEMUHasToRead(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"raw", 3 << 20, []step{{512, 1 << 20, 1}}}})
	packed := compressed(t, chain)
	overlay := filepath.Join(dir, "overlay.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", packed[0].Path, "-F", "qcow2", overlay)
	subclusters := filepath.Join(dir, "subclusters.qcow2")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "extended_l2=on", chain[0].Path, subclusters)
	for name, layers := range map[string][]imagecheck.Layer{
		"compressed":  packed,
		"below":       {{Path: overlay, Format: "qcow2"}, packed[0]},
		"subclusters": {{Path: subclusters, Format: "qcow2"}},
	} {
		source := identified(t, layers)
		target := transfer.Target{Path: filepath.Join(dir, name), Size: 3 << 20, ID: "this"}
		for cursor, want := range map[string]transfer.Method{"": transfer.Whole, target.Path + ".cursor": transfer.Ranges} {
			fillFile(t, target.Path, target.Size)
			result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{Cursor: cursor, Verify: true})
			if err != nil || result.Method != want {
				t.Errorf("%s: %+v, %v", name, result, err)
			}
			expect(t, target.Path, content)
		}
		if _, err := (&transfer.Engine{}).Copy(t.Context(), source, target, transfer.Options{Only: transfer.Native}); failure.KindOf(err) != failure.Precondition {
			t.Errorf("%s: natively: %v", name, err)
		}
	}
	// What the target has already may be of any sort.
	source := identified(t, []imagecheck.Layer{{Path: overlay, Format: "qcow2"}, packed[0]})
	source.Present = 1
	target := transfer.Target{Path: filepath.Join(dir, "present"), Size: 3 << 20}
	if err := os.WriteFile(target.Path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	result, err := (&transfer.Engine{}).Copy(t.Context(), source, target, transfer.Options{})
	if err != nil || result.Method != transfer.Native || result.Copied != 0 {
		t.Errorf("present: %+v, %v", result, err)
	}
	expect(t, target.Path, content)
}

// The class is that of the threads that copy and of programs they start, and
// stays away from everybody else.
func TestIOClass(t *testing.T) {
	class := func() uintptr {
		got, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, 1, 0, 0)
		if errno != 0 {
			t.Error(errno)
		}
		return got
	}
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"qcow2", 1 << 20, []step{{0, 512, 1}}}})
	before := class()
	for name, want := range map[transfer.IOClass]uintptr{transfer.IOIdle: 3 << 13, transfer.IOBestEffort: 2<<13 | 7} {
		var native, child uintptr
		engine := transfer.Engine{Run: &commandtest.Runner{T: t, Answers: []commandtest.Answer{
			{Prefix: "qemu-img --version", Stdout: "qemu-img version 7.2.22\n"},
			{Prefix: "qemu-img convert", Do: func(command.Cmd) { child = class() }},
		}}}
		engine.ReadThrough(func(r io.ReaderAt) io.ReaderAt { return spy{r, func() { native = class() }} })
		target := transfer.Target{Path: filepath.Join(dir, string(name)), Size: 1 << 20}
		for _, method := range []transfer.Method{transfer.Whole, transfer.Native} {
			if _, err := engine.Copy(t.Context(), inspect(t, chain), target, transfer.Options{IOClass: name, Only: method}); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, target.Path, bytes.Clone(content))
		if native != want || child != want {
			t.Errorf("%s: threads have %#x, programs %#x, want %#x", name, native, child, want)
		}
	}
	if after := class(); after != before {
		t.Errorf("the process has %#x, had %#x", after, before)
	}
	_, err := (&transfer.Engine{}).Copy(t.Context(), inspect(t, chain), transfer.Target{Path: filepath.Join(dir, "x"), Size: 1 << 20}, transfer.Options{IOClass: "realtime"})
	if failure.KindOf(err) != failure.Usage {
		t.Errorf("got %v", err)
	}
}

type spy struct {
	io.ReaderAt
	look func()
}

func (s spy) ReadAt(p []byte, off int64) (int, error) {
	s.look()
	return s.ReaderAt.ReadAt(p, off)
}
