// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// After Copy the target reads as the source, reads zero up to its size, and
// is as before beyond: checked byte by byte and by qemu-img compare.
func TestCopy(t *testing.T) {
	for name, layers := range chains(7) {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of the time is waiting for flushes
			chain, content := build(t, t.TempDir(), layers)
			source := inspect(t, chain)
			if source.Size != int64(len(content)) {
				t.Fatalf("virtual size %d, made %d", source.Size, len(content))
			}
			before := fingerprints(t, chain)
			for kind, prepare := range targets {
				t.Run(kind, func(t *testing.T) {
					path := filepath.Join(t.TempDir(), "target")
					target, after := prepare(t, path, source.Size+rest)
					copyAndVerify(t, source, target)
					want := append(bytes.Clone(content), make([]byte, rest)...)
					expect(t, target.Path, append(want, after...))
					equal(t, chain, path, target.Size)
				})
			}
			if after := fingerprints(t, chain); before != after {
				t.Errorf("the source was written to")
			}
		})
	}
}

// rest is the tail that targets have behind the source's end, beyond is what
// lies behind that and is not the copy's.
const rest, beyond = 1<<20 + 512, 64 << 10

// targets are the kinds of targets there are. Each makes one of size bytes at
// path and says what has to be found behind them afterwards.
var targets = map[string]func(t *testing.T, path string, size int64) (transfer.Target, []byte){
	"new file": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		return transfer.Target{Path: path, Size: size}, nil
	},
	"preallocated file": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		preallocate(t, path, size+beyond)
		return transfer.Target{Path: path, Size: size, Zeroed: true}, make([]byte, beyond)
	},
	"old file": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		return transfer.Target{Path: path, Size: size}, oldBytes(beyond)
	},
	"old file promised to be zero": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		return transfer.Target{Path: path, Size: size, Zeroed: true}, oldBytes(beyond)
	},
	"old device": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		return transfer.Target{Path: loop(t, path), Block: true, Size: size}, oldBytes(beyond)
	},
	"zeroed device": func(t *testing.T, path string, size int64) (transfer.Target, []byte) {
		fillFile(t, path, size+beyond)
		tool(t, "fallocate", "--zero-range", "--length", fmt.Sprint(size), path)
		return transfer.Target{Path: loop(t, path), Block: true, Size: size, Zeroed: true}, oldBytes(beyond)
	},
}

// copyAndVerify copies and holds the progress to its promise.
func copyAndVerify(t *testing.T, source transfer.Source, target transfer.Target) {
	t.Helper()
	var last int64
	engine := transfer.Engine{Run: command.System{}}
	_, err := engine.Copy(t.Context(), source, target, transfer.Options{Verify: true, Progress: func(done, total int64) {
		if total != source.Size || done < last {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != source.Size {
		t.Errorf("progress ended at %d of %d", last, source.Size)
	}
}

// A raw file may end within a sector; QEMU shows the rest of that as zeros.
func TestRawFileEndsWithinASector(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{1, 511, 513, 1<<20 + 100} {
		path := filepath.Join(dir, fmt.Sprint("source", size))
		content := bytes.Repeat([]byte{7}, size)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		source := inspect(t, []imagecheck.Layer{{Path: path, Format: "raw"}})
		for _, size := range []int64{source.Size, source.Size + 4096} {
			target := transfer.Target{Path: filepath.Join(dir, fmt.Sprint("target", size)), Size: size}
			fillFile(t, target.Path, size)
			if _, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
			expect(t, target.Path, append(bytes.Clone(content), make([]byte, int(size)-len(content))...))
		}
	}
}

// A target that somebody replaces is noticed: what is flushed would not be
// what was written.
func TestReplacedTarget(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"raw", 4096, nil}})
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: 4096}
	fillFile(t, target.Path, 4096)
	fake := &commandtest.Runner{T: t, Answers: []commandtest.Answer{
		{Prefix: "qemu-img --version", Stdout: "qemu-img version 7.2.22\n"},
		{Prefix: "qemu-img convert", Do: func(command.Cmd) {
			fillFile(t, target.Path+".new", 4096)
			if err := os.Rename(target.Path+".new", target.Path); err != nil {
				t.Error(err)
			}
		}},
	}}
	if _, err := (&transfer.Engine{Run: fake}).Copy(t.Context(), inspect(t, chain), target, transfer.Options{Only: transfer.Whole}); failure.KindOf(err) != failure.Conflict {
		t.Errorf("got %v", err)
	}
}

// A promise of zeros keeps a thin target thin and a preallocated one
// allocated.
func TestZeroedTargetKeepsItsAllocation(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2", 64 << 20, []step{{0, 1 << 20, 1}, {32 << 20, 1 << 20, 2}}}})
	source := inspect(t, chain)
	engine := transfer.Engine{Run: command.System{}}
	thin, full := filepath.Join(dir, "thin"), filepath.Join(dir, "full")
	preallocate(t, full, source.Size)
	for path, size := range map[string][2]int64{thin: {2 << 20, 4 << 20}, full: {64 << 20, 65 << 20}} {
		if _, err := engine.Copy(t.Context(), source, transfer.Target{Path: path, Size: source.Size, Zeroed: true}, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		if n := allocated(t, path); n < size[0] || n > size[1] {
			t.Errorf("%s takes %d bytes, want %v", filepath.Base(path), n, size)
		}
	}
}

// A device that was promised to be zero and is not: where it is noticed the
// copy fails, and says what to do.
func TestBrokenPromise(t *testing.T) {
	dir := t.TempDir()
	chain, _ := build(t, dir, []layer{{"qcow2", 1 << 20, nil}})
	source := inspect(t, chain)
	fillFile(t, filepath.Join(dir, "device"), 2<<20)
	target := transfer.Target{Path: loop(t, filepath.Join(dir, "device")), Block: true, Zeroed: true, Size: 2 << 20}
	_, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{})
	if failure.KindOf(err) != failure.Precondition || !strings.Contains(err.Error(), "has data at byte 1048576") || !strings.Contains(failure.HintOf(err), "lvchange --zero y") {
		t.Errorf("got %v", err)
	}
}

// What is refused is refused before any program runs, and stays as it was.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	fillFile(t, at("file"), 4096)
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", at("link")); err != nil {
		t.Fatal(err)
	}
	source := transfer.Source{Layers: []imagecheck.Layer{{Path: at("file"), Format: "raw"}}, Size: 4096}
	for name, c := range map[string]struct {
		source transfer.Source
		target transfer.Target
		kind   *failure.Kind
	}{
		"no source":           {transfer.Source{Size: 512}, transfer.Target{Path: at("new"), Size: 512}, failure.Usage},
		"no size":             {transfer.Source{Layers: source.Layers}, transfer.Target{Path: at("new"), Size: 512}, failure.Usage},
		"half a sector":       {transfer.Source{Layers: source.Layers, Size: 700}, transfer.Target{Path: at("new"), Size: 1024}, failure.Usage},
		"target too small":    {source, transfer.Target{Path: at("new"), Size: 2048}, failure.Precondition},
		"relative target":     {source, transfer.Target{Path: "new", Size: 4096}, failure.Usage},
		"file too short":      {source, transfer.Target{Path: at("file"), Size: 8192}, failure.Precondition},
		"file for a device":   {source, transfer.Target{Path: at("file"), Block: true, Size: 4096}, failure.Precondition},
		"missing device":      {source, transfer.Target{Path: at("new"), Block: true, Size: 4096}, nil},
		"char device":         {source, transfer.Target{Path: "/dev/zero", Block: true, Size: 4096}, failure.Precondition},
		"char device as file": {source, transfer.Target{Path: "/dev/zero", Size: 4096}, failure.Precondition},
		"FIFO":                {source, transfer.Target{Path: at("fifo"), Size: 4096}, failure.Precondition},
		"link for a file":     {source, transfer.Target{Path: at("link"), Size: 4096}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			engine := transfer.Engine{Run: &commandtest.Runner{T: t}}
			_, err := engine.Copy(t.Context(), c.source, c.target, transfer.Options{})
			if err == nil || failure.KindOf(err) != c.kind {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(at("new")); err == nil {
				t.Error("something was made")
			}
		})
	}
	expect(t, at("file"), oldBytes(4096))
}

// What is read is what was inspected, whatever the name means by then.
func TestCopyThroughDescriptors(t *testing.T) {
	dir := t.TempDir()
	chain, content := build(t, dir, []layer{{"raw", 1 << 20, []step{{0, 512, 5}}}, {"qcow2", 1 << 20, []step{{4096, 512, 6}}}})
	opened, err := imagecheck.Checker{Allowed: filepath.EvalSymlinks}.Open(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	for _, l := range chain {
		if err := os.Remove(l.Path); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", chain[0].Path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	source := transfer.Source{Layers: chain, Size: opened.VirtualSize, Files: opened.Files}
	target := transfer.Target{Path: filepath.Join(dir, "target"), Size: opened.VirtualSize}
	if _, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	expect(t, target.Path, content)
}

// qcow2 and raw directly on block devices, as on shared LVM, by path and by
// descriptor.
func TestBlockSource(t *testing.T) {
	for _, format := range []string{"qcow2", "raw"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			chain, content := build(t, dir, []layer{{format, 2 << 20, []step{{512, 4096, 5}, {1 << 20, 512, 6}}}})
			if err := os.Truncate(chain[0].Path, 2<<20); err != nil { // whole sectors for the device
				t.Fatal(err)
			}
			chain[0].Path = loop(t, chain[0].Path)
			opened, err := imagecheck.Checker{Allowed: filepath.EvalSymlinks}.Open(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			defer opened.Close()
			for name, files := range map[string][]*os.File{"path": nil, "descriptor": opened.Files} {
				source := transfer.Source{Layers: chain, Size: opened.VirtualSize, Files: files}
				target := transfer.Target{Path: filepath.Join(dir, name), Size: opened.VirtualSize}
				if _, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{Verify: true}); err != nil {
					t.Fatal(err)
				}
				expect(t, target.Path, content)
			}
		})
	}
}
