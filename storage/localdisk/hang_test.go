// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// TestHungSourceHoldsNobody mounts a file system that nobody serves, so that
// every look below it hangs, as on a dead NFS server.
func TestHungSourceHoldsNobody(t *testing.T) {
	if os.Getenv("SKIP_FUSE") != "" {
		t.Skip("SKIP_FUSE is set")
	}
	w := newWorld(t, "dir")
	dir := w.path("nfs")
	must(t, os.Mkdir(dir, 0o755))
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		defer fuse.Close() // ends what hangs
		err = unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
	}
	if err != nil {
		t.Fatalf("mount: %v (SKIP_FUSE=1 leaves this test out)", err)
	}
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	d := w.disk()
	d.Source = []imagecheck.Layer{{Path: filepath.Join(dir, "disk.raw"), Format: imagecheck.Raw}}
	began := time.Now()
	_, err = service().Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{Deadline: time.Second})
	if took := time.Since(began); took > time.Minute || failure.KindOf(err) != failure.Temporary {
		t.Errorf("after %v: %v", took, err)
	}
	if w.ready() {
		t.Error("something was made")
	}
}
