// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
)

// Whoever made the image may have died before the work on it began: the same request
// again is not answered with an image that nobody makes.
func TestARequestMadeAgainGoesOn(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, _ := w.diskOnBase()
	died := repository.Options{RequestID: "r", NoAutoFix: true}
	again := repository.Options{RequestID: "r"}
	for name, verb := range map[string]func(repository.Options) (string, error){
		"create": func(o repository.Options) (string, error) { return s.CreateVirtualDisk(ctx, "b", mib, "", nil, o) },
		"copy": func(o repository.Options) (string, error) {
			o.RequestID += "copy"
			return s.CopyImage(ctx, "b", disk, "", nil, o)
		},
	} {
		first, err := verb(died)
		must(t, err)
		second, err := verb(again)
		if err != nil || second != first {
			t.Errorf("%s: %s, then %s: %v", name, first, second, err)
		}
		w.state("b", first, repository.Optimized)
	}
}

// A snapshot that is there already is what was asked for, under whatever request.
func TestARequestForASnapshotThatIsThere(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	_, base := w.diskOnBase()
	hint := repository.Options{ImageHints: map[string]string{base: "a"}}
	_, err := s.CopyImage(ctx, "b", base, "", nil, hint)
	must(t, err)
	hint.RequestID = "later"
	id, err := s.CopyImage(ctx, "b", base, "", nil, hint)
	if err != nil || id != base {
		t.Errorf("%s: %v", id, err)
	}
}

// meeting calls hook once, before the repository is locked.
type meeting struct {
	localfs.Format
	hook func()
}

func (f *meeting) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := f.Format.Open(ctx, parameters)
	return &meetingPlace{p, f}, err
}

type meetingPlace struct {
	format.Place
	f *meeting
}

func (p *meetingPlace) Lock(ctx context.Context, name string) (format.Lock, error) {
	if hook := p.f.hook; hook != nil {
		p.f.hook = nil
		hook()
	}
	return p.Place.Lock(ctx, name)
}

// Two make the same request at the same moment, and get the same image.
func TestTheSameRequestAtTheSameTime(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	o := repository.Options{RequestID: "r"}
	for name, verb := range map[string]func(*repository.Service) (string, error){
		"create":  func(s *repository.Service) (string, error) { return s.CreateVirtualDisk(ctx, "b", mib, "", nil, o) },
		"overlay": func(s *repository.Service) (string, error) { return s.CreateVirtualDisk(ctx, "a", 0, base, nil, o) },
		"snapshot": func(s *repository.Service) (string, error) {
			return s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{RequestID: "s"})
		},
	} {
		var first string
		s := w.on("h1")
		s.Formats = []format.Format{&meeting{hook: func() {
			var err error
			first, err = verb(w.on("h2"))
			must(t, err)
		}}}
		second, err := verb(s)
		if err != nil || second != first {
			t.Errorf("%s: %s, then %s: %v (%s)", name, first, second, err, failure.HintOf(err))
		}
	}
	if n := w.count("a"); n != 4 {
		t.Errorf("%d images", n)
	}
}

// Who asks for something else by a request that was made is told of no image: the one of that
// id is not his.
func TestARequestForSomethingElseNamesNoImage(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, _ := w.diskOnBase()
	o := repository.Options{RequestID: "r"}
	_, err := s.CreateVirtualDisk(ctx, "b", mib, "", nil, o)
	must(t, err)
	id, err := s.CreateVirtualDisk(ctx, "b", 2*mib, "", nil, o)
	if refused(t, err, failure.Conflict, "something else"); id != "" {
		t.Errorf("create: %s", id)
	}
	id, err = s.CopyImage(ctx, "b", disk, "", nil, o)
	if refused(t, err, failure.Conflict, "something else"); id != "" {
		t.Errorf("copy: %s", id)
	}
}
