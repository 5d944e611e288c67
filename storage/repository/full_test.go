// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format/localfs"
	"diskhook/storage/repository/format/nfs"
)

// small are file systems of a few MiB, which can be filled to the last block.
var small = map[string]func(w *world, at string){
	"tmpfs": func(w *world, at string) {
		must(w, unix.Mount("small", at, "tmpfs", 0, "size=24m"))
	},
	"ext4": func(w *world, at string) {
		file := w.path("ext4.img")
		must(w, os.WriteFile(file, nil, 0o600))
		must(w, os.Truncate(file, 24<<20))
		w.tool("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", file)
		w.tool("mount", "-o", "loop", file, at)
	},
	"ext4-journal": func(w *world, at string) {
		file := w.path("ext4.img")
		must(w, os.WriteFile(file, nil, 0o600))
		must(w, os.Truncate(file, 32<<20))
		w.tool("mkfs.ext4", "-q", "-m", "0", "-J", "size=4", file)
		w.tool("mount", "-o", "loop", file, at)
	},
}

// eachSmall runs a test with repository a of each format of files on each of them. It
// needs root, and fails without unless SKIP_SMALL_FILESYSTEM=1.
func eachSmall(t *testing.T, test func(t *testing.T, w *world)) {
	if os.Getenv("SKIP_SMALL_FILESYSTEM") == "1" {
		t.Skip("SKIP_SMALL_FILESYSTEM=1")
	}
	for kind, mount := range small {
		for _, format := range []string{localfs.Name, nfs.Name} {
			t.Run(kind+"/"+format, func(t *testing.T) {
				w := &world{TB: t, Dir: t.TempDir(), Format: format}
				at := w.path("repos", "a")
				must(t, os.MkdirAll(at, 0o755))
				mount(w, at)
				t.Cleanup(func() {
					if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
						t.Errorf("umount: %v: %s", err, out)
					}
				})
				w.connect()
				test(t, w)
			})
		}
	}
}

// fill leaves nothing of a repository's file system, to the last block: first with large
// files, then with the smallest, until several of these find no room.
func (w *world) fill(repo string) {
	w.Helper()
	filler := func(i int, bytes int64) (full bool) {
		f, err := os.Create(filepath.Join(w.path("repos", repo), fmt.Sprintf(".filler-%d", i)))
		if err == nil {
			_, err = io.Copy(f, io.LimitReader(rand.NewChaCha8([32]byte{}), bytes))
			err = errors.Join(err, f.Sync(), f.Close())
		}
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			w.Fatal(err)
		}
		return err != nil
	}
	refusals := 0
	for i := 0; refusals < 20; i++ {
		bytes := int64(1)
		if refusals == 0 {
			bytes = mib
		}
		if filler(i, bytes) {
			refusals++
		} else if bytes == 1 {
			refusals = 1
		}
	}
}

func (w *world) unfill(repo string) {
	w.Helper()
	all, err := filepath.Glob(filepath.Join(w.path("repos", repo), ".filler-*"))
	must(w, err)
	for _, path := range all {
		must(w, os.Remove(path))
	}
}

// A repository without one free block can be emptied again.
func TestAFullRepositoryIsEmptied(t *testing.T) {
	eachSmall(t, func(t *testing.T, w *world) {
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		other, err := s.CreateVirtualDisk(ctx, "a", 1*mib, "", nil, repository.Options{})
		must(t, err)
		w.write("a", other, w.reference("other", 1*mib), 5, "0", "1M")
		unfinished, err := s.CopyImage(ctx, "a", other, "", nil, repository.Options{NoAutoFix: true})
		must(t, err)
		w.fill("a")
		_, err = s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{})
		refused(t, err, failure.NoSpace)
		refused(t, s.SetUserData(ctx, "a", disk, []byte(`"x"`)), failure.NoSpace) // what is kept is for removals

		for i, image := range []string{unfinished, base, disk, other} { // of base nothing is freed at first
			o := repository.Options{PostZero: image == other}
			if err := s.RemoveImage(ctx, "a", image, o); err != nil {
				t.Fatalf("image %d: %v", i, err)
			}
		}
		if left := w.files("a"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		w.settled()
		if n := w.count("a"); n > 0 {
			t.Errorf("%d images", n)
		}

		// What it takes is kept for the next time.
		again, err := s.CreateVirtualDisk(ctx, "a", 1*mib, "", nil, repository.Options{})
		must(t, err)
		w.fill("a")
		must(t, s.RemoveImage(ctx, "a", again, repository.Options{}))
		w.settled()
	})
}

// A worker that runs out of space says so, in a status that is durable.
func TestAFullRepositoryTellsThatItIs(t *testing.T) {
	eachSmall(t, func(t *testing.T, w *world) {
		s, ctx := w.on("h1"), t.Context()
		from := w.reference("from", 4*mib)
		w.tool("qemu-io", "-f", "raw", "-c", "write -P 3 0 4M", from)
		id, err := s.ImportImage(ctx, "a", []imagecheck.Layer{{Path: from, Format: imagecheck.Raw}}, repository.Disk, nil, repository.Options{NoAutoFix: true})
		must(t, err)
		w.fill("a")
		refused(t, s.Run(ctx, "a", id), failure.NoSpace)
		st, err := w.on("h2").GetImageStatus(ctx, "a", id)
		must(t, err)
		if !st.Open || st.State != repository.Broken || st.LastErrorCode != failure.NoSpace.Code || !strings.Contains(st.LastError, "no space left") {
			t.Errorf("%+v", st)
		}
		w.unfill("a")
		must(t, w.on("h2").Resume(ctx, "a"))
		w.holds("a", id, from)
		w.settled()
	})
}
