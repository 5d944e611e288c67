// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os/exec"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
)

// largest has no file of this process, nor of its children, be larger than so many bytes.
func largest(t *testing.T, bytes uint64) {
	t.Helper()
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &before))
	signal.Ignore(unix.SIGXFSZ) // then it is an EFBIG, as of a file system
	must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: before.Max}))
	t.Cleanup(func() {
		must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &before))
		signal.Reset(unix.SIGXFSZ)
	})
}

// A disk that no file of the file system can hold is not promised.
func TestASizeThatNoFileCanHave(t *testing.T) {
	const huge = 64 << 40
	for _, name := range []string{"localfs-1.0", "nfs-3.4"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, name)
			largest(t, 1<<40)
			s, ctx := w.on("h1"), t.Context()
			none := repository.Options{}
			_, err := s.PreviewVirtualDisk(ctx, "a", huge, "", nil, none)
			refused(t, err, failure.Precondition, "repository a", "a smaller size")
			_, err = s.CreateVirtualDisk(ctx, "a", huge, "", nil, none)
			refused(t, err, failure.Precondition, "repository a", "a smaller size")
			w.untouched("a")
			disk, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, none)
			must(t, err)
			_, _, err = s.PreviewResize(ctx, "a", disk, huge)
			refused(t, err, failure.Precondition, "a smaller size")
			refused(t, s.ResizeVirtualDisk(ctx, "a", disk, huge, none), failure.Precondition, "a smaller size")
			over := w.path("large.qcow2")
			must(t, exec.Command("qemu-img", "create", "-q", "-f", imagecheck.QCOW2, "-o", "cluster_size=2M", over, "64T").Run())
			_, err = s.ImportImage(ctx, "a", []imagecheck.Layer{{Path: over, Format: imagecheck.QCOW2}}, repository.Disk, nil, none)
			refused(t, err, failure.Precondition, "a smaller size")
			w.state("a", disk, repository.Optimized)
		})
	}
}
