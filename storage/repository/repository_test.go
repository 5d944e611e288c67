// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"encoding/json"
	"testing"

	"diskhook/storage/repository"
)

const mib = 1 << 20

func TestAnImageLivesThroughAllVerbs(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()

		disk, err := s.CreateVirtualDisk(ctx, "a", 8*mib-5, "", json.RawMessage(`{"name": "first"}`), repository.Options{})
		must(t, err)
		w.state("a", disk, repository.Optimized)
		info, err := s.GetImage(ctx, "a", disk)
		must(t, err)
		if info.Size != 8*mib || info.Kind != repository.Disk || string(info.UserData) != `{"name":"first"}` || info.Stage != "2/2" || info.PercentComplete != 100 || info.HostID != "h1" {
			t.Errorf("%+v", info)
		}
		now := w.reference("now", 8*mib)
		w.write("a", disk, now, 1, "1M", "2M")

		first, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(t, err)
		before := w.keep(now, "before")
		w.write("a", disk, now, 2, "2M", "2M")
		w.holds("a", first, before)
		w.holds("a", disk, now)

		larger, err := s.CreateVirtualDisk(ctx, "a", 12*mib, first, nil, repository.Options{})
		must(t, err)
		w.holds("a", larger, before)
		whole, err := s.CreateVirtualDisk(ctx, "b", 0, first, nil, repository.Options{})
		must(t, err)
		w.holds("b", whole, before)
		fast, err := s.CreateVirtualDisk(ctx, "a", 0, first, nil, repository.Options{Strategy: repository.Performance})
		must(t, err)
		w.holds("a", fast, before)
		w.state("a", fast, repository.Optimized)

		second, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(t, err)
		then := w.keep(now, "then")
		if id, err := s.CopyImage(ctx, "b", first, "", nil, repository.Options{}); err != nil || id != first {
			t.Fatalf("%s: %v", id, err)
		}
		if id, err := s.CopyImage(ctx, "b", second, first, nil, repository.Options{}); err != nil || id != second {
			t.Fatalf("%s: %v", id, err)
		}
		w.holds("b", first, before)
		w.holds("b", second, now)
		if info, err := s.GetImage(ctx, "b", second); err != nil || info.Chain != 2 {
			t.Errorf("%+v: %v", info, err)
		}
		other, err := s.CopyImage(ctx, "b", disk, "", nil, repository.Options{})
		must(t, err)
		if other == disk {
			t.Error("a copied disk keeps its id")
		}
		w.holds("b", other, now)

		must(t, s.ResizeVirtualDisk(ctx, "a", disk, 16*mib, repository.Options{}))
		w.tool("truncate", "-s", "16M", now)
		w.write("a", disk, now, 3, "15M", "1M")
		w.holds("a", disk, now)

		// Without the first snapshot its content stays, for those that lie on it.
		must(t, s.RemoveImage(ctx, "a", first, repository.Options{}))
		refused(t, s.RemoveImage(ctx, "a", "5f3b8b0c-9a53-4a87-a5b5-2d5a9cb4b1d6", repository.Options{}), repository.ErrNoImage)
		w.holds("a", larger, before)
		must(t, s.RemoveImage(ctx, "a", larger, repository.Options{}))
		for _, fix := range w.repair("a") {
			if fix.Type != repository.Merge {
				t.Errorf("%+v", fix)
			}
		}
		w.holds("a", disk, now)
		w.holds("a", fast, before)
		must(t, s.RemoveImage(ctx, "a", disk, repository.Options{}))
		must(t, s.RemoveImage(ctx, "a", second, repository.Options{}))
		must(t, s.RemoveImage(ctx, "a", fast, repository.Options{}))
		w.repair("a")
		if left := w.files("a"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		w.holds("b", second, then)
	})
}
