// SPDX-License-Identifier: Apache-2.0

//go:build integration

package bindings_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// TestUnprivilegedReader: vdsm may not list the directories, and opens a
// receipt by its name. One that it must not open is there all the same.
func TestUnprivilegedReader(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to be somebody else")
	}
	w := hooktest.New(t, &hooktest.Local{})
	path := w.Receipt(localdisk.Receipt{Image: "c9865ca8-f6d2-4363-bec2-af870a87a819", Volume: "1dfad482-c65c-436c-aa59-87e020b63302", Used: true})
	for dir := filepath.Dir(path); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	try := func(image string, ovirt bool) error {
		d := domainWith(nil)
		d.OVirt, d.Disks[0].Image = ovirt, image
		return asNobody(t, func() error { return w.Forsaken(d, nil) })
	}
	refused(t, try("c9865ca8-f6d2-4363-bec2-af870a87a819", true), failure.Conflict, "vda", "localdisk=dir")
	for _, ovirt := range []bool{false, true} {
		if err := try("c9865ca8-f6d2-4363-bec2-000000000000", ovirt); err != nil {
			t.Errorf("without a receipt: %v", err)
		}
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	refused(t, try("c9865ca8-f6d2-4363-bec2-af870a87a819", true), failure.Precondition, "vda", "permission denied")
	if err := os.Chmod(filepath.Dir(filepath.Dir(path)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := try("c9865ca8-f6d2-4363-bec2-af870a87a819", true); err != nil {
		t.Errorf("nobody can tell: %v", err)
	}
}

// asNobody runs check with the rights of uid and gid 65534 on files.
func asNobody(t *testing.T, check func() error) error {
	t.Helper()
	runtime.LockOSThread() // file system ids are a thread's own
	defer runtime.UnlockOSThread()
	defer func() {
		if err := errors.Join(unix.Setfsuid(0), unix.Setfsgid(0)); err != nil {
			t.Fatal(err)
		}
	}()
	if err := errors.Join(unix.Setfsgid(65534), unix.Setfsuid(65534)); err != nil {
		t.Fatal(err)
	}
	return check()
}
