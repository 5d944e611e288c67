// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/transfer"
)

// xfs mounts an XFS, which can share blocks, from a file.
func xfs(t *testing.T) string {
	t.Helper()
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	image, dir := filepath.Join(t.TempDir(), "xfs"), t.TempDir()
	for _, argv := range [][]string{
		{"truncate", "-s", "400M", image},
		{"mkfs.xfs", "-q", "-m", "reflink=1", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s (needs root, loop devices and xfsprogs; SKIP_LOOP=1 leaves this out)", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

func free(t *testing.T, dir string) uint64 {
	t.Helper()
	unix.Sync()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

func TestReflink(t *testing.T) {
	dir := xfs(t)
	for name, length := range map[string]int{"whole blocks": 32 << 20, "within a sector": 32<<20 - 4096 + 100, "less than a block": 700} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "source.raw")
			content := bytes.Repeat([]byte("shared blocks 16"), length/16+1)[:length]
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			source := identified(t, []imagecheck.Layer{{Path: path, Format: "raw"}})
			target := transfer.Target{Path: filepath.Join(dir, "target.raw"), Size: source.Size + 8192, ID: "it"}
			defer os.Remove(target.Path)
			before := free(t, dir)
			result, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target,
				transfer.Options{Verify: true, Cursor: filepath.Join(t.TempDir(), "cursor")})
			if err != nil || result.Method != transfer.Reflink || result.Digest == "" {
				t.Fatalf("%+v, %v", result, err)
			}
			if taken := before - min(before, free(t, dir)); taken > 1<<20 {
				t.Errorf("it took %d bytes", taken)
			}
			want := append(bytes.Clone(content), make([]byte, target.Size-int64(length))...)
			expect(t, target.Path, want)
			// Writing to one is not seen in the other.
			tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 512", target.Path)
			expect(t, path, content)
		})
	}
}

// What a QEMU writes to is not shared, nor copied, behind its back; what a
// QEMU reads is.
func TestSourceInUse(t *testing.T) {
	dir := xfs(t)
	path := filepath.Join(dir, "source.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	source := identified(t, []imagecheck.Layer{{Path: path, Format: "raw"}})
	for args, want := range map[string]*failure.Kind{"-n": failure.Conflict, "-r": nil} {
		holder := exec.Command("qemu-io", args, "-f", "raw", path)
		stdin, err := holder.StdinPipe()
		stdout, pipeErr := holder.StdoutPipe()
		if err := errors.Join(err, pipeErr, holder.Start()); err != nil {
			t.Fatal(err)
		}
		if _, err := stdin.Write([]byte("length\n")); err != nil {
			t.Fatal(err)
		}
		for answers := bufio.NewScanner(stdout); answers.Scan() && !strings.Contains(answers.Text(), "MiB"); {
		}
		for _, only := range []transfer.Method{"", transfer.Reflink, transfer.Native, transfer.Whole} {
			target := transfer.Target{Path: filepath.Join(dir, "target.raw"), Size: 1 << 20}
			_, err := (&transfer.Engine{Run: command.System{}}).Copy(t.Context(), source, target, transfer.Options{Only: only})
			if failure.KindOf(err) != want || (err == nil) != (want == nil) {
				t.Errorf("qemu-io %s, method %q: %v", args, only, err)
			}
			if _, err := os.Lstat(target.Path); err == nil && want != nil {
				t.Errorf("method %q: the refused copy was left", only)
			}
			_ = os.Remove(target.Path)
		}
		_ = stdin.Close()
		_ = holder.Wait()
	}
}

// Where blocks cannot be shared they are copied.
func TestReflinkImpossible(t *testing.T) {
	dir, elsewhere := xfs(t), t.TempDir()
	path := filepath.Join(dir, "source.raw")
	content := bytes.Repeat([]byte{1}, 1<<20)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	source := inspect(t, []imagecheck.Layer{{Path: path, Format: "raw"}})
	fillFile(t, filepath.Join(dir, "old"), 1<<20)
	for name, target := range map[string]transfer.Target{
		"another file system": {Path: filepath.Join(elsewhere, "target"), Size: 1 << 20},
		"old content":         {Path: filepath.Join(dir, "old"), Size: 1 << 20, Zeroed: true},
	} {
		engine := transfer.Engine{Run: command.System{}}
		if _, err := engine.Copy(t.Context(), source, target, transfer.Options{Only: transfer.Reflink}); failure.KindOf(err) != failure.Precondition {
			t.Errorf("%s: %v", name, err)
		}
		result, err := engine.Copy(t.Context(), source, target, transfer.Options{})
		if err != nil || result.Method != transfer.Native {
			t.Errorf("%s: %+v, %v", name, result, err)
		}
		expect(t, target.Path, content)
	}
}
