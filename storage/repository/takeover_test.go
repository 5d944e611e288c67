// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// However often work dies on hosts of which nobody knows whether they will wake up: the plan
// goes on, and keeps no more of what they left than is of the last one.
func TestAPlanMayBeTakenOverForEver(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	_, err := s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	whole, err := s.CopyImage(ctx, "b", disk, "", nil, repository.Options{NoAutoFix: true})
	must(t, err)
	snapshot, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(t, err)
	parts, err := s.CopyImage(ctx, "b", snapshot, base, nil, repository.Options{NoAutoFix: true})
	must(t, err)
	must(t, s.RemoveImage(ctx, "a", base, repository.Options{}))
	report, err := s.CheckStorageRepository(ctx, "a")
	must(t, err)
	if len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Merge {
		t.Fatalf("%+v", report)
	}
	must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{NoAutoFix: true}))
	long := json.RawMessage(`"` + strings.Repeat("x", repository.MaxUserData-2) + `"`) // most of the document
	all := []struct{ repo, image string }{{"b", whole}, {"b", parts}, {"a", snapshot}}
	for _, of := range all {
		before := len(w.files(of.repo))
		thief := &faulty{}
		thief.takenOver.Store(true)
		dying := w.on("h2")
		dying.Formats = []format.Format{thief}
		must(t, s.SetUserData(ctx, of.repo, of.image, long))
		for range 40 {
			life, dies := context.WithCancel(ctx)
			thief.slow = dies
			if err := dying.Run(life, of.repo, of.image); !errors.Is(err, context.Canceled) {
				t.Fatalf("image %s/%s: %v", of.repo, of.image, err)
			}
		}
		if now := len(w.files(of.repo)); now > before+2 {
			t.Errorf("repository %s had %d volumes and has %d", of.repo, before, now)
		}
	}
	for _, of := range all {
		must(t, s.Run(ctx, of.repo, of.image))
		w.holds(of.repo, of.image, w.path("now.raw"))
	}
	w.settled()
	// The disk lies on what the snapshot had before it was copied.
	if a, b := w.files("a"), w.files("b"); len(a) != 4 || len(b) != 3 {
		t.Errorf("left behind: %v %v", a, b)
	}
}
