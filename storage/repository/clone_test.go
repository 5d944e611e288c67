// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/repository"
)

// onXFS has the repositories on an XFS, which can share blocks.
func onXFS(t *testing.T) *world {
	t.Helper()
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	w := &world{TB: t, Dir: t.TempDir(), Format: "localfs-1.0"}
	image, dir := w.path("xfs"), w.path("repos")
	for _, argv := range [][]string{
		{"mkdir", dir}, {"truncate", "-s", "400M", image}, {"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir},
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
	w.connect()
	return w
}

// Where blocks can be shared, no image lies on another one, and none costs space.
func TestImagesShareBlocksWhereTheyCan(t *testing.T) {
	w := onXFS(t)
	s, ctx := w.on("h1"), t.Context()
	capable, err := s.Capabilities(ctx, "a")
	if err != nil || !capable.Clones {
		t.Fatalf("%+v: %v", capable, err)
	}
	disk, err := s.CreateVirtualDisk(ctx, "a", 64*mib, "", nil, repository.Options{})
	must(t, err)
	now := w.reference("now", 64*mib)
	w.write("a", disk, now, 1, "0", "32M")
	unix.Sync()
	before, err := s.Capacity(ctx, "a")
	must(t, err)
	for range 4 {
		snapshot, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(t, err)
		onIt, err := s.CreateVirtualDisk(ctx, "a", 0, snapshot, nil, repository.Options{})
		must(t, err)
		w.holds("a", snapshot, now)
		w.holds("a", onIt, now)
	}
	unix.Sync()
	after, err := s.Capacity(ctx, "a")
	must(t, err)
	if used := before.Available - after.Available; used > 16*mib {
		t.Errorf("8 images of 32 MiB took %d bytes", used)
	}
	page, err := s.ListImages(ctx, "a", repository.Filter{})
	must(t, err)
	for _, i := range page.Images {
		if i.Chain != 1 {
			t.Errorf("%+v", i)
		}
	}
	for _, name := range w.files("a") {
		if !strings.HasSuffix(name, ".raw") {
			t.Errorf("%s is no clone", name)
		}
	}
	w.write("a", disk, now, 2, "1M", "1M")
	w.holds("a", disk, now)
	for _, i := range page.Images {
		must(t, s.RemoveImage(ctx, "a", i.ID, repository.Options{}))
	}
	w.repair("a")
	if left := w.files("a"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
