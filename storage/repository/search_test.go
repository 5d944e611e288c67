// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"testing"
	"time"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// A repository that hangs for an hour keeps nobody from what is in others.
func TestRepositoriesAreAskedAtTheSameTime(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	for _, id := range []string{base, disk} {
		_, err := w.on("h1").CopyImage(ctx, "b", id, "", nil, repository.Options{})
		must(t, err)
	}
	must(t, w.on("h1").CreateStorageRepository(ctx, w.Format, inDirectory(w.path("repos", "c"))))
	must(t, w.on("h1").ConnectStorageRepository(ctx, "c", w.Format, inDirectory(w.path("repos", "c"))))
	dead := &faulty{}
	dead.hangs.Store(true)
	s := w.on("h1")
	s.Formats = []format.Format{&only{dead, w.parameters("a")["path"]}}
	s.Deadline = time.Hour
	_, err := s.CopyImage(ctx, "c", base, "", nil, repository.Options{})
	must(t, err)
	all, err := s.Survey(ctx)
	must(t, err)
	for i, state := range []repository.StandingState{repository.Unreachable, repository.Connected, repository.Connected} {
		there := state == repository.Connected
		if all[i].State != state || (all[i].Error == "") != there || (all[i].Capacity != nil) != there {
			t.Errorf("%+v", all[i])
		}
	}
	// A list of where to look may name a repository twice, and the target.
	page, err := s.ListImages(ctx, "b", repository.Filter{Kind: repository.Disk})
	must(t, err)
	_, err = s.CopyImage(ctx, "c", page.Images[0].ID, "", nil, repository.Options{
		ParticipatingRepositories: []string{"b", "c", "b"}, NoAutoFix: true, // the worker looks everywhere
	})
	must(t, err)
}
