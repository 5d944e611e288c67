// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
)

// between calls hook each time after the repository's lock was given up.
type between struct {
	localfs.Format
	hook func()
}

func (f *between) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := f.Format.Open(ctx, parameters)
	return &betweenPlace{p, f}, err
}

type betweenPlace struct {
	format.Place
	f *between
}

func (p *betweenPlace) Lock(ctx context.Context, name string) (format.Lock, error) {
	l, err := p.Place.Lock(ctx, name)
	return &betweenLock{l, p.f}, err
}

type betweenLock struct {
	format.Lock
	f *between
}

func (l *betweenLock) Release() {
	l.Lock.Release()
	l.f.hook()
}

// Who ends a plan does not take the next one out of the index of plans, which was
// begun before the first had left it.
func TestTheNextPlanStaysInTheIndex(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	s, other, begun := w.on("h1"), w.on("h2"), false
	disk, err := s.CreateVirtualDisk(ctx, "a", 4*mib, "", nil, repository.Options{NoAutoFix: true})
	must(t, err)
	s.Formats = []format.Format{&between{hook: func() {
		st, err := other.GetImageStatus(ctx, "a", disk)
		if must(t, err); begun || st.Open {
			return
		}
		begun = true
		must(t, other.ResizeVirtualDisk(ctx, "a", disk, 16*mib, repository.Options{NoAutoFix: true}))
	}}}
	must(t, s.Run(ctx, "a", disk))
	tasks, err := other.ListTasks(ctx, "a")
	if err != nil || !begun || len(tasks) != 1 || tasks[0].ImageID != disk || tasks[0].Stage != "0/1" {
		t.Errorf("%t, %+v: %v", begun, tasks, err)
	}
	must(t, other.Resume(ctx, "a"))
	if info, err := other.GetImage(ctx, "a", disk); err != nil || info.Size != 16*mib || info.Open {
		t.Errorf("%+v: %v", info, err)
	}
}
