// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
)

// populate writes the documents and the data of many disks, each on a snapshot of
// its own, as the verbs would.
func populate(tb testing.TB, w *world, images int) {
	write := func(folder, name string, data []byte) {
		must(tb, os.WriteFile(w.path("repos", "a", folder, name), data, 0o600))
	}
	document := func(folder, id string, v map[string]any) {
		v["v"], v["gen"], v["id"] = 1, 1, id
		write(folder, id+".json", repository.Encode(tb, v))
	}
	created := time.Now().UTC()
	for range images / 2 {
		base, disk, lower, upper := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
		document("volumes", lower, map[string]any{"format": "raw", "size": mib, "complete": true})
		document("volumes", upper, map[string]any{"format": "qcow2", "size": mib, "complete": true, "below": lower})
		document("images", base, map[string]any{"kind": "snapshot", "size": mib, "strategy": "space", "volume": lower, "created": created})
		document("images", disk, map[string]any{"kind": "disk", "size": mib, "strategy": "space", "volume": upper, "base": base, "created": created})
		write("data", lower+".raw", nil)
		write("data", upper+".qcow2", nil)
	}
}

func TestManyImagesAreListedAndChecked(t *testing.T) {
	const images = 6000
	w := newWorld(t, "localfs-1.0")
	populate(t, w, images)
	s := w.on("h1")
	report, err := s.CheckStorageRepository(t.Context(), "a")
	must(t, err)
	if report.Images != images || report.Volumes != images || len(report.Fixes)+len(report.Problems) > 0 {
		t.Errorf("%+v", report)
	}
	seen, after := 0, ""
	for {
		page, err := s.ListImages(t.Context(), "a", repository.Filter{After: after, Kind: repository.Disk, Limit: 700})
		must(t, err)
		for _, i := range page.Images {
			if i.ID <= after || i.State != repository.Optimized || i.Chain != 2 {
				t.Fatalf("after %s: %+v", after, i)
			}
			seen, after = seen+1, i.ID
		}
		if page.Next == "" {
			break
		}
	}
	if seen != images/2 {
		t.Errorf("%d images were listed", seen)
	}
}

// go test -run - -bench . ./storage/repository/

func BenchmarkCheck(b *testing.B) {
	for _, images := range []int{1000, 100000} {
		b.Run(fmt.Sprintf("images=%d", images), func(b *testing.B) {
			w := newWorld(b, "localfs-1.0")
			populate(b, w, images)
			s := w.on("h1")
			b.Run("check", func(b *testing.B) {
				for b.Loop() {
					report, err := s.CheckStorageRepository(b.Context(), "a")
					if err != nil || report.Images != images {
						b.Fatal(report, err)
					}
				}
			})
			b.Run("list", func(b *testing.B) {
				for b.Loop() {
					for after, more := "", true; more; more = after != "" {
						page, err := s.ListImages(b.Context(), "a", repository.Filter{After: after, Limit: 10000})
						must(b, err)
						after = page.Next
					}
				}
			})
			b.Run("plain walk", func(b *testing.B) {
				for b.Loop() {
					for _, folder := range []string{"images", "volumes"} {
						entries, err := os.ReadDir(w.path("repos", "a", folder))
						must(b, err)
						for _, e := range entries {
							_, err := os.ReadFile(w.path("repos", "a", folder, e.Name()))
							must(b, err)
						}
					}
				}
			})
		})
	}
}

// What a snapshot costs does not depend on how much is in the disk.
func BenchmarkSnapshot(b *testing.B) {
	for _, size := range []int64{16 * mib, 1024 * mib} {
		b.Run(fmt.Sprintf("written=%dMiB", size/mib), func(b *testing.B) {
			w := newWorld(b, "localfs-1.0")
			s := w.on("h1")
			disk, err := s.CreateVirtualDisk(b.Context(), "a", size, "", nil, repository.Options{})
			must(b, err)
			w.write("a", disk, w.reference("now", size), 1, "0", fmt.Sprint(size))
			b.ResetTimer()
			for b.Loop() {
				b.StopTimer()
				on, err := s.CopyImage(b.Context(), "a", disk, "", nil, repository.Options{})
				must(b, err)
				b.StartTimer()
				id, err := s.CreateSnapshot(b.Context(), "a", on, nil, repository.Options{})
				must(b, err)
				b.StopTimer()
				must(b, s.RemoveImage(b.Context(), "a", on, repository.Options{}))
				must(b, s.RemoveImage(b.Context(), "a", id, repository.Options{}))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkCreate(b *testing.B) {
	w := newWorld(b, "localfs-1.0")
	s := w.on("h1")
	disk, err := s.CreateVirtualDisk(b.Context(), "a", 64*mib, "", nil, repository.Options{})
	must(b, err)
	base, err := s.CreateSnapshot(b.Context(), "a", disk, nil, repository.Options{})
	must(b, err)
	b.Run("disk on a snapshot", func(b *testing.B) {
		for b.Loop() {
			_, err := s.CreateVirtualDisk(b.Context(), "a", 0, base, nil, repository.Options{})
			must(b, err)
		}
	})
	b.Run("plain qemu-img", func(b *testing.B) {
		for b.Loop() {
			path := w.path(uuid.NewString())
			must(b, exec.Command("qemu-img", "create", "-q", "-f", imagecheck.QCOW2, "-b", w.path("now.raw"), "-F", "raw", "-u", path, "64M").Run())
			must(b, exec.Command("sync", path).Run())
		}
	})
}
