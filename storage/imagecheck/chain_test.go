// SPDX-License-Identifier: Apache-2.0

package imagecheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// within allows what resolves to a path below dir, as [paths] roots do.
func within(dir string) Allowed {
	return func(path string) (string, error) {
		resolved, err := filepath.EvalSymlinks(path)
		if err != nil {
			return "", failure.Wrap(failure.NotFound, err)
		}
		if !strings.HasPrefix(resolved, dir+"/") {
			return "", failure.New(failure.Precondition, "%s: not below any of [paths] roots", resolved)
		}
		return resolved, nil
	}
}

// qemuImg runs the real program; a machine without it fails the test.
func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s(install qemu-utils)", strings.Join(args, " "), err, out)
	}
}

// room is a directory without symlinks in its path.
func room(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// chain makes base.raw <- mid.qcow2 <- top.qcow2 with relative names, of
// growing size, and returns the layers, top first.
func chain(t *testing.T, dir string) []Layer {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	write(t, at("base.raw"), make([]byte, 1<<20+100))
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", at("mid.qcow2"), "2M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", at("mid.qcow2"), "-F", "qcow2", at("top.qcow2"), "3M")
	return []Layer{{at("top.qcow2"), QCOW2}, {at("mid.qcow2"), QCOW2}, {at("base.raw"), Raw}}
}

func TestChain(t *testing.T) {
	dir := room(t)
	layers := chain(t, dir)
	for n, want := range map[int]int64{0: 3 << 20, 1: 2 << 20, 2: 1<<20 + 512} {
		info, err := Chain(t.Context(), layers[n:], within(dir))
		if err != nil {
			t.Fatal(err)
		}
		if info.VirtualSize != want {
			t.Errorf("layer %d: virtual size %d, want %d", n, info.VirtualSize, want)
		}
		if diff := cmp.Diff(layers[n:], info.Layers); diff != "" {
			t.Error(diff)
		}
		if last := info.Headers[len(info.Headers)-1]; last != nil {
			t.Errorf("the raw layer has a header: %+v", last)
		}
	}
	found, err := Discover(t.Context(), layers[0], within(dir))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(layers, found); diff != "" {
		t.Error(diff)
	}
}

// oVirt names images by links, with backing files relative to the link's
// directory. Images and links lie in different directories here, so that a
// name which was resolved too early leads nowhere.
func TestChainThroughLinks(t *testing.T) {
	dir := room(t)
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	for _, sub := range []string{"links", "a", "b"} {
		if err := os.Mkdir(at(sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("b", "base.raw"), make([]byte, 1<<20))
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", "base.raw", "-F", "raw", at("a", "top.qcow2"), "1M")
	for link, to := range map[string]string{"top.qcow2": "../a/top.qcow2", "base.raw": "../b/base.raw"} {
		if err := os.Symlink(to, at("links", link)); err != nil {
			t.Fatal(err)
		}
	}
	declared := []Layer{{at("links", "top.qcow2"), QCOW2}, {at("links", "base.raw"), Raw}}
	info, err := Chain(t.Context(), declared, within(dir))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Layer{{at("a", "top.qcow2"), QCOW2}, {at("b", "base.raw"), Raw}}, info.Layers); diff != "" {
		t.Error(diff)
	}
	found, err := Discover(t.Context(), declared[0], within(dir))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(declared, found); diff != "" {
		t.Error(diff)
	}
	// A link among the images themselves is followed from where the image is.
	if err := os.Remove(at("links", "base.raw")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../b/base.raw", at("a", "base.raw")); err != nil {
		t.Fatal(err)
	}
	declared[1].Path = at("b", "base.raw")
	if _, err := Chain(t.Context(), declared, within(dir)); err != nil {
		t.Error(err)
	}
}

func TestFingerprint(t *testing.T) {
	dir := room(t)
	layers := chain(t, dir)
	var identities []Identity
	take := func() string {
		t.Helper()
		info, err := Chain(t.Context(), layers, within(dir))
		if err != nil {
			t.Fatal(err)
		}
		identities = info.Identities
		return info.Fingerprint
	}
	// changed are the parts of the identities that are not what they were.
	changed := func(was []Identity) string {
		var parts []string
		for i, id := range identities {
			for _, part := range []struct {
				name string
				is   bool
			}{
				{"inode", id.Inode != was[i].Inode}, {"time", id.Written != was[i].Written},
				{"size", id.Size != was[i].Size}, {"head", id.Head != was[i].Head},
			} {
				if part.is {
					parts = append(parts, fmt.Sprint(i, " ", part.name))
				}
			}
		}
		return strings.Join(parts, ", ")
	}
	first := take()
	if again := take(); again != first || len(first) != 64 {
		t.Errorf("looking changed it: %s, then %s", first, again)
	}
	seen := map[string]string{first: "nothing"}
	base := layers[2].Path
	for _, c := range []struct {
		what, parts string
		do          func() error
	}{
		{"a write to the base", "2 time", func() error { return exec.Command("qemu-io", "-f", "raw", "-c", "write -P 1 64k 512", base).Run() }},
		{"a write to the top", "0 time, 0 size", func() error {
			return exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P 1 64k 512", layers[0].Path).Run()
		}},
		{"a base of the same content and time", "2 inode", func() error {
			return exec.Command("sh", "-c", `cp -p "$1" "$1.new" && mv "$1.new" "$1"`, "sh", base).Run()
		}},
		{"a longer base", "2 time, 2 size", func() error { return os.Truncate(base, 2<<20) }},
		{"a new label", "2 time, 2 head", func() error { return exec.Command("qemu-io", "-f", "raw", "-c", "write -P 1 0 512", base).Run() }},
	} {
		was := identities
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		now := take()
		if before, ok := seen[now]; ok {
			t.Errorf("%s leaves the fingerprint as after %s", c.what, before)
		}
		seen[now] = c.what
		if parts := changed(was); parts != c.parts {
			t.Errorf("%s changes %s, want %s", c.what, parts, c.parts)
		}
	}
}

// A raw disk is the guest's to write: a qcow2 header in it means nothing.
func TestGuestWroteAHeaderIntoARawDisk(t *testing.T) {
	dir := room(t)
	evil := withBacking("/etc/shadow", "raw")
	evil.size = 1 << 51
	path := write(t, filepath.Join(dir, "disk.raw"), evil.bytes())
	info, err := Chain(t.Context(), []Layer{{path, Raw}}, within(dir))
	if err != nil || info.VirtualSize != evil.imageBytes {
		t.Errorf("got %+v, %v; want the %d bytes of the file", info, err, evil.imageBytes)
	}
}

func TestVirtualSizeCap(t *testing.T) {
	dir := room(t)
	qemuImg(t, "create", "-q", "-f", "qcow2", filepath.Join(dir, "a.qcow2"), "1G")
	layers := []Layer{{filepath.Join(dir, "a.qcow2"), QCOW2}}
	if _, err := (Checker{Allowed: within(dir), MaxVirtualSize: 1<<30 - 512}).Chain(t.Context(), layers); !errors.Is(err, ErrTrap) {
		t.Errorf("over the cap: %v", err)
	}
	if _, err := (Checker{Allowed: within(dir), MaxVirtualSize: 1 << 30}).Chain(t.Context(), layers); err != nil {
		t.Errorf("at the cap: %v", err)
	}
}

// qcow2 directly on a block device, as on shared LVM.
func TestBlockLayer(t *testing.T) {
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	dir := room(t)
	layers := chain(t, dir)
	if err := os.Truncate(layers[0].Path, 1<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", layers[0].Path).Output()
	if err != nil {
		t.Fatalf("losetup: %v (needs root and loop devices; SKIP_LOOP=1 leaves this out)", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	layers[0].Path = dev
	allowed := func(path string) (string, error) {
		if path == dev {
			return path, nil
		}
		return within(dir)(path)
	}
	before, err := Chain(t.Context(), layers, allowed)
	if err != nil || before.VirtualSize != 3<<20 || before.Layers[0].Path != dev {
		t.Fatalf("got %+v, %v", before, err)
	}
	qemuIO := exec.Command("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", dev)
	if out, err := qemuIO.CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
	after, err := Chain(t.Context(), layers, allowed)
	if err != nil || after.Fingerprint == before.Fingerprint {
		t.Errorf("a new cluster left the fingerprint as it was, %v", err)
	}
	if files, err := Chain(t.Context(), layers[1:], allowed); err != nil || files.Block || !after.Block {
		t.Errorf("on a device: %v, its backing files: %v, %v", after.Block, files.Block, err)
	}
}

// What was inspected stays what is read, even if the name moves on.
func TestOpenHoldsWhatItInspected(t *testing.T) {
	dir := room(t)
	path := write(t, filepath.Join(dir, "disk.raw"), []byte(strings.Repeat("a", 512)))
	opened, err := Checker{Allowed: within(dir)}.Open(t.Context(), []Layer{{path, Raw}})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, []byte(strings.Repeat("b", 512)))
	got := make([]byte, 512)
	if _, err := opened.Files[0].ReadAt(got, 0); err != nil || string(got) != strings.Repeat("a", 512) {
		t.Errorf("read %q, %v", got[:3], err)
	}
}

// A storage that does not answer is left behind when the context ends.
func TestHungStorage(t *testing.T) {
	hung := make(chan struct{})
	defer close(hung)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := Chain(ctx, []Layer{{"/mnt/dead/disk.raw", Raw}}, func(string) (string, error) {
		<-hung
		return "", errors.New("too late")
	})
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
	if !errors.Is(err, context.DeadlineExceeded) || failure.KindOf(err) != failure.Temporary || !strings.Contains(err.Error(), "/mnt/dead/disk.raw: no answer") {
		t.Errorf("got %v", err)
	}
}

// Opened as another user, a file that only root may read is refused, and one
// of that user is read where root is squashed.
func TestOpenAsUser(t *testing.T) {
	if os.Getenv("SKIP_ROOT") == "1" {
		t.Skip("SKIP_ROOT=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root to take on another identity; SKIP_ROOT=1 leaves this out")
	}
	dir, err := os.MkdirTemp("/var/tmp", "imagecheck")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := write(t, filepath.Join(dir, "disk.raw"), make([]byte, 512))
	checker := Checker{Allowed: within(dir), User: &command.Credential{UID: 12345, GID: 12345, Groups: []uint32{54321}}}
	look := func() error {
		_, err := checker.Chain(t.Context(), []Layer{{path, Raw}})
		return err
	}
	if err := look(); !errors.Is(err, os.ErrPermission) || failure.KindOf(err) != failure.Precondition {
		t.Errorf("root's file: %v", err)
	}
	if err := os.Chown(path, 0, 54321); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o040); err != nil {
		t.Fatal(err)
	}
	if err := look(); err != nil {
		t.Errorf("readable by a supplementary group: %v", err)
	}
	// A directory that the user may not search hides what is in it, as an
	// export that squashes root does from root.
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := look(); !errors.Is(err, os.ErrPermission) {
		t.Errorf("below root's directory: %v", err)
	}
	if _, err := Chain(t.Context(), []Layer{{path, Raw}}, within(dir)); err != nil {
		t.Errorf("the process lost its own identity: %v", err)
	}
}
