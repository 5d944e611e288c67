// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"diskhook/storage/command"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository"
	"diskhook/storage/transfer"
)

// calls runs programs, unless they fail, and keeps what was run.
type calls struct {
	mu    sync.Mutex
	fails bool
	all   []command.Cmd
}

func (c *calls) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	c.mu.Lock()
	c.all = append(c.all, cmd)
	fails := c.fails
	c.mu.Unlock()
	if fails {
		return command.Result{}, errors.New("there is no such program")
	}
	return command.System{}.Run(ctx, cmd)
}

// calling is a host of which all programs are run by c.
func (w *world) calling(host string, c *calls) *repository.Service {
	s := w.on(host)
	s.Images = &qemuimg.QemuImg{Run: c}
	s.Engine = &transfer.Engine{Run: c, Log: s.Log}
	return s
}

// Work that fails again and again is one fix: who does all of them knows that he did
// that one.
func TestWorkThatFailsStaysTheSameFix(t *testing.T) {
	w := newWorld(t, "nfs-3.4") // which clones nothing
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	_, err := w.on("h1").CreateSnapshot(ctx, "a", disk, nil, repository.Options{NoAutoFix: true})
	must(t, err)
	s := w.calling("h1", &calls{fails: true})
	found := func() repository.Fix {
		t.Helper()
		report, err := s.CheckStorageRepository(ctx, "a")
		must(t, err)
		if len(report.Fixes) != 1 || !report.Fixes[0].Resumes {
			t.Fatalf("%+v", report)
		}
		return report.Fixes[0]
	}
	first := found()
	refused(t, s.FixStorageRepository(ctx, "a", first, repository.Options{}), "no such program")
	if again := found(); again.ID != first.ID {
		t.Errorf("fix %s is fix %s after it failed", first.ID, again.ID)
	}
	must(t, w.on("h1").FixStorageRepository(ctx, "a", first, repository.Options{}))
	refused(t, s.FixStorageRepository(ctx, "a", first, repository.Options{}), repository.ErrStaleFix)
}

// A program that writes to a volume may outlive who called it: it keeps the lock of the
// work, and that of a volume which is changed in place.
func TestWhoeverWritesKeepsTheLocks(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	c := &calls{}
	s := w.calling("h1", c)
	snapshot, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(t, err)
	must(t, s.ResizeVirtualDisk(ctx, "a", disk, 8*mib, repository.Options{}))
	w.write("a", disk, w.path("now.raw"), 3, "3M", "64k")
	_, err = s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	_, err = s.CopyImage(ctx, "b", snapshot, base, nil, repository.Options{})
	must(t, err)
	for _, gone := range []string{base, snapshot} {
		must(t, s.RemoveImage(ctx, "a", gone, repository.Options{}))
	}
	for range 12 {
		report, err := s.CheckStorageRepository(ctx, "a")
		must(t, err)
		if len(report.Fixes) == 0 {
			break
		}
		must(t, s.FixStorageRepository(ctx, "a", report.Fixes[0], repository.Options{}))
	}
	inPlace := map[string]int{}
	for _, cmd := range c.all {
		if cmd.Name != "qemu-img" || !slices.Contains([]string{"create", "rebase", "resize", "commit", "convert"}, cmd.Args[0]) {
			continue
		}
		if len(cmd.Files) == 0 {
			t.Errorf("without a lock: %s", cmd)
		}
		if len(cmd.Files) > 1 {
			inPlace[cmd.Args[0]]++
		}
	}
	for _, verb := range []string{"resize", "commit", "rebase"} {
		if inPlace[verb] == 0 {
			t.Errorf("%s did not have the lock of its volume as well: %v", verb, inPlace)
		}
	}
}
