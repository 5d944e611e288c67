// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// faulty is a group in which something fails that nobody has a word for.
type faulty struct {
	group.Group
	create func(name string) error
	flush  func(name string) error // after what was written has arrived
	list   func()                  // before it is looked what there is
	off    func(name string) error
}

func (f faulty) List(ctx context.Context) ([]group.LV, error) {
	if f.list != nil {
		f.list()
	}
	return f.Group.List(ctx)
}

func (f faulty) Deactivate(ctx context.Context, name string) error {
	if f.off != nil {
		return f.off(name)
	}
	return f.Group.Deactivate(ctx, name)
}

func (f faulty) Create(ctx context.Context, name string, bytes uint64) error {
	if f.create != nil {
		if err := f.create(name); err != nil {
			return err
		}
	}
	return f.Group.Create(ctx, name, bytes)
}

func (f faulty) Open(ctx context.Context, name string, write bool) (group.Volume, error) {
	v, err := f.Group.Open(ctx, name, write)
	if err != nil || f.flush == nil {
		return v, err
	}
	return &flushes{v, func() error { return f.flush(name) }}, nil
}

type flushes struct {
	group.Volume
	fails func() error
}

func (f *flushes) Flush() error { return errors.Join(f.Volume.Flush(), f.fails()) }

// A request in which something fails for good is answered, and does not keep the ones
// after it from being so.
func TestFailureOfNoKindIsAnswered(t *testing.T) {
	m, _, slots := served(t)
	odd := errors.New("lvcreate: exit status 5")
	m.Group = faulty{Group: m.Group, create: func(name string) error {
		if _, suffix, _ := layout.ParseName(name); suffix == layout.Thin {
			return odd
		}
		return nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Serve(ctx, quick) }()
	short, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	_, err := slots.Ask(short, 1, request.Create{ID: id(9), Name: "vol", Size: 512})
	if !errors.Is(err, request.ErrRefused) || failure.KindOf(err) != nil || failure.HintOf(err) == "" {
		t.Fatalf("%v, hint %q", err, failure.HintOf(err))
	}
	if r, err := slots.Ask(ctx, 2, request.Grant{Blocks: 7}); err != nil || r.Blocks != 7 {
		t.Fatalf("%+v, %v", r, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A request is not refused whose commit is on the disk, though it failed afterwards.
func TestFailureAfterTheCommit(t *testing.T) {
	w := newWorld(t)
	w.join(1, "one")
	left := 2 // the contents, and the header
	w.Group = faulty{Group: w.g, flush: func(name string) error {
		if left--; name == layout.MapName && left == 0 {
			return errors.New("input/output error")
		}
		return nil
	}}
	if r, err := w.ask(1, request.Grant{Blocks: 3}); err != nil || r.Blocks != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	w.Group = w.g
	if r, err := w.ask(1, request.Grant{Blocks: 1}); err != nil || r.Blocks != 4 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A master that slept while another followed it removes nothing when it wakes up.
func TestDeposedInTheMiddle(t *testing.T) {
	w := newWorld(t)
	stray := layout.Thin.Name(id(77))
	w.must(w.g.Create(t.Context(), stray, 1<<20))
	next := nominee(t, w.g)
	w.Group = faulty{Group: w.g, list: func() {
		if _, err := next.Claim(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}}
	if _, err := w.Collect(t.Context()); !errors.Is(err, layout.ErrStale) {
		t.Errorf("%v", err)
	}
	if w.g.Disk(stray) == nil {
		t.Error("it was removed")
	}
	if c, err := next.Collect(t.Context()); err != nil || len(c.Volumes) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

// Who was the master keeps no host's volume active, but for one that is in use here.
func TestFormerMasterLetsGo(t *testing.T) {
	m, next, _ := served(t)
	if _, err := m.Join(t.Context(), master.Newcomer{UUID: id(2), Name: "two"}); err != nil {
		t.Fatal(err)
	}
	var off []string
	m.Group = faulty{Group: m.Group, off: func(name string) error {
		off = append(off, name)
		return failure.New(failure.Conflict, "%s: in use", name)
	}}
	if _, err := next.Claim(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Serve(t.Context(), quick); !errors.Is(err, layout.ErrStale) {
		t.Fatal(err)
	}
	slices.Sort(off)
	if want := []string{layout.Host.Name(id(1)), layout.Host.Name(id(2))}; !slices.Equal(want, off) {
		t.Errorf("%q, want %q", off, want)
	}
}

// A host that made the cluster and was replaced changes nothing of the group when it
// makes the cluster once more.
func TestDeposedMakesNoCluster(t *testing.T) {
	w := newWorld(t)
	if _, err := nominee(t, w.g).Claim(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	before := w.g.Disk(layout.DataName).Size()
	_, err := w.Init(t.Context(), master.Shape{Bytes: 2 * blocks * blockSize, BlockSize: blockSize})
	if !errors.Is(err, layout.ErrStale) || failure.HintOf(err) == "" {
		t.Errorf("%v, hint %q", err, failure.HintOf(err))
	}
	if now := w.g.Disk(layout.DataName).Size(); now != before {
		t.Errorf("%d bytes were made %d", before, now)
	}
}

// A host that slept while another made the map anew leaves that one alone, and what
// belongs to it.
func TestDeposedWhileTheMapIsMadeAnew(t *testing.T) {
	w := dead(t)
	w.lose()
	next := nominee(t, w.g)
	var before map[string][4096]byte
	w.Group = faulty{Group: w.g, list: func() {
		if _, err := next.RebuildMap(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		before = contents(t, w.g)
	}}
	if _, err := w.RebuildMap(t.Context(), true); !errors.Is(err, layout.ErrStale) || failure.HintOf(err) == "" {
		t.Errorf("%v, hint %q", err, failure.HintOf(err))
	}
	if diff := cmp.Diff(before, contents(t, w.g)); diff != "" {
		t.Error(diff)
	}
	if _, is, err := next.Reigns(t.Context()); !is || err != nil {
		t.Error(is, err)
	}
}
