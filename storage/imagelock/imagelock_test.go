// SPDX-License-Identifier: Apache-2.0

package imagelock_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagelock"
)

// qemuIO keeps an image open until the function it returns is called.
func qemuIO(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	proc := exec.Command("qemu-io", append(args, "-f", "qcow2")...)
	stdin, err := proc.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := proc.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := proc.Start(); err != nil {
		t.Fatalf("%v (install qemu-utils)", err)
	}
	// It answers once the image is open.
	if _, err := stdin.Write([]byte("length\n")); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewScanner(stdout)
	for answers.Scan() && !strings.Contains(answers.Text(), "1 MiB") {
	}
	stop = func() {
		_ = stdin.Close()
		_ = proc.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// refused says whether qemu-io may not open the image.
func refused(t *testing.T, args ...string) bool {
	t.Helper()
	out, err := exec.Command("qemu-io", append(args, "-f", "qcow2", "-c", "length")...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "lock") {
		t.Fatalf("qemu-io %q: %v: %s", args, err, out)
	}
	return err != nil
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestAgainstQEMU(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	// Of a raw image, qemu-io -r would share writing.
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	f, second := open(t, path), open(t, path)

	// A QEMU that writes keeps out both, and leaves no lock of ours behind.
	stop := qemuIO(t, path)
	for name, take := range map[string]func(*os.File) error{"read": imagelock.Read, "write": imagelock.Write} {
		if err := take(f); failure.KindOf(err) != failure.Conflict || failure.HintOf(err) == "" {
			t.Errorf("%s while a QEMU writes: %v", name, err)
		}
	}
	stop()
	if refused(t, path) {
		t.Error("what was refused has left locks")
	}

	// One that reads keeps out the writer only.
	stop = qemuIO(t, "-r", path)
	if err := imagelock.Write(f); failure.KindOf(err) != failure.Conflict {
		t.Errorf("write while a QEMU reads: %v", err)
	}
	if err := imagelock.Read(f); err != nil {
		t.Errorf("read while a QEMU reads: %v", err)
	}
	stop()

	// And the other way round.
	if err := imagelock.Read(second); err != nil {
		t.Errorf("two readers: %v", err)
	}
	if refused(t, "-r", path) || !refused(t, path) {
		t.Error("a reader keeps out QEMUs that write, and only those")
	}
	imagelock.Release(second)
	if !refused(t, path) {
		t.Error("one reader gave up the other's locks")
	}
	imagelock.Release(f)
	if err := imagelock.Write(f); err != nil {
		t.Errorf("write: %v", err)
	}
	if !refused(t, "-r", path) || !refused(t, path) {
		t.Error("a writer keeps out every QEMU")
	}
	if err := imagelock.Write(second); failure.KindOf(err) != failure.Conflict {
		t.Errorf("two writers: %v", err)
	}
	_ = f.Close()
	if refused(t, path) {
		t.Error("the lock has outlived its description")
	}
}
