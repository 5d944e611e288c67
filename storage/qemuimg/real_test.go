// SPDX-License-Identifier: Apache-2.0

package qemuimg

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
)

// The real program does what the typed calls say. It has to be installed
// (qemu-utils); a machine without it fails.
func TestRealProgram(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ctx, q := t.Context(), QemuImg{Run: command.System{}}
	base := imagecheck.Layer{Path: at("base,with=comma.raw"), Format: "raw"}
	top := imagecheck.Layer{Path: at("top.qcow2"), Format: "qcow2"}
	if err := os.WriteFile(base.Path, bytes.Repeat([]byte("base"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	runs(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", base.Path, "-F", "raw", "-o", "cluster_size=4096,compression_type=zstd", top.Path, "2M")

	chain := []imagecheck.Layer{top, base}
	flat := imagecheck.Layer{Path: at("flat.qcow2"), Format: "qcow2"}
	if err := q.Convert(ctx, ConvertOptions{Source: chain, Target: flat.Path, TargetFormat: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	if equal, err := q.Compare(ctx, chain, []imagecheck.Layer{flat}); !equal || err != nil {
		t.Errorf("the copy differs: %v", err)
	}
	// Written over in its first byte, it differs, which is no error.
	if out, err := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 512", flat.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if equal, err := q.Compare(ctx, chain, []imagecheck.Layer{flat}); equal || err != nil {
		t.Errorf("equal %v, %v", equal, err)
	}
	// What is not there or not of that format is an error, not a difference.
	if _, err := q.Compare(ctx, chain, []imagecheck.Layer{{Path: base.Path, Format: "qcow2"}}); err == nil {
		t.Error("compared with a raw image as qcow2")
	}
}

// A declared chain is followed, not the header: a header that names another
// backing file changes nothing.
func TestHeaderIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ctx, q := t.Context(), QemuImg{Run: command.System{}}
	for name, fill := range map[string]string{"declared.raw": "d", "secret.raw": "s"} {
		if err := os.WriteFile(at(name), bytes.Repeat([]byte(fill), 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	runs(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", at("secret.raw"), "-F", "raw", at("top.qcow2"), "4096")
	top, declared := imagecheck.Layer{Path: at("top.qcow2"), Format: "qcow2"}, imagecheck.Layer{Path: at("declared.raw"), Format: "raw"}
	for target, c := range map[string]struct {
		source []imagecheck.Layer
		want   string
	}{
		"alone": {[]imagecheck.Layer{top}, "\x00"},
		"chain": {[]imagecheck.Layer{top, declared}, "d"},
	} {
		if err := q.Convert(ctx, ConvertOptions{Source: c.source, Target: at(target), TargetFormat: "raw"}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(at(target))
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte(c.want), 4096)) {
			t.Errorf("%s: read %q…, %v", target, got[:min(8, len(got))], err)
		}
	}
}

// An image that is being written to is in use.
func TestLockedImage(t *testing.T) {
	dir := t.TempDir()
	ctx, q := t.Context(), QemuImg{Run: command.System{}}
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	writer := exec.Command("qemu-io", "-f", "raw", path)
	stdin, err := writer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stdin.Close()
		_ = writer.Wait()
	}()
	if _, err := stdin.Write([]byte("read 0 512\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := stdout.Read(make([]byte, 64)); err != nil { // it has the image open now
		t.Fatal(err)
	}
	err = q.Convert(ctx, ConvertOptions{Source: []imagecheck.Layer{{Path: path, Format: "raw"}}, Target: filepath.Join(dir, "new"), TargetFormat: "raw"})
	if failure.KindOf(err) != failure.Conflict {
		t.Errorf("got %v", err)
	}
}
