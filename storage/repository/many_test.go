// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package repository_test

import (
	"os"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"diskhook/storage/repository"
)

// A repository of 100 000 images: a check finds what is wrong with a few of them and nothing
// else; all are listed, page by page, each once; neither holds more than the documents.
func TestHundredThousandImages(t *testing.T) {
	const images, lost, spoiled = 100_000, 3, 2
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err == nil { // 300 000 files take minutes to make and remove on a disk
		t.Setenv("TMPDIR", memory)
	}
	w := newWorld(t, "localfs-1.0")
	populate(t, w, images)
	data := func(pattern string) []string {
		all, err := filepath.Glob(w.path("repos", "a", pattern)) // in order
		must(t, err)
		return all
	}
	for _, path := range data("data/*.qcow2")[:lost] {
		must(t, os.Remove(path))
	}
	documents := data("images/*.json")
	for _, path := range documents[images-spoiled:] {
		must(t, os.Truncate(path, 20))
	}
	s, ctx := w.on("h2"), t.Context()
	most := watchHeap(t)
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	problems := strings.Join(report.Problems, "\n")
	if report.Images != images-spoiled || report.Volumes != images || len(report.Fixes) != spoiled ||
		strings.Count(problems, "its data is not there; it holds data of ") != lost || strings.Count(problems, "its checksum is wrong") != spoiled {
		t.Errorf("%+v", report)
	}

	kinds, states, after := map[repository.Kind]int{}, map[repository.State]int{}, ""
	for more := true; more; more = after != "" {
		page, err := s.ListImages(ctx, "a", repository.Filter{After: after, Limit: 10_000})
		must(t, err)
		for _, i := range page.Images {
			if i.ID <= after {
				t.Fatalf("%s comes after %s", i.ID, after)
			}
			kinds[i.Kind]++
			states[i.State]++
			after = i.ID
		}
		after = page.Next
	}
	if kinds[repository.Disk]+kinds[repository.Snapshot] != images-spoiled || kinds[""] != spoiled || states[repository.Broken] != spoiled {
		t.Errorf("%v, %v", kinds, states)
	}
	late := strings.TrimSuffix(filepath.Base(documents[images-1000]), ".json")
	page, err := s.ListImages(ctx, "a", repository.Filter{State: repository.Broken, After: late})
	must(t, err)
	if len(page.Images) != spoiled || page.Next != "" {
		t.Errorf("broken: %+v", page)
	}
	if bytes := most(); bytes > 512<<20 {
		t.Errorf("%d MiB of memory for %d images", bytes>>20, images)
	}
}

// watchHeap looks how much of memory is in use, again and again; its result stops that and
// says how much it was at most, in bytes.
func watchHeap(t *testing.T) (most func() uint64) {
	var watcher sync.WaitGroup
	done, peak := make(chan struct{}), uint64(0)
	watcher.Go(func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		for {
			metrics.Read(sample)
			peak = max(peak, sample[0].Value.Uint64())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	stop := sync.OnceFunc(func() { close(done); watcher.Wait() })
	t.Cleanup(stop)
	return func() uint64 {
		stop()
		t.Logf("%d MiB of memory at most", peak>>20)
		return peak
	}
}
