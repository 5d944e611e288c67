// SPDX-License-Identifier: Apache-2.0

// Package formattest has what every repository format has to do, as a test.
package formattest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/imagelock"
	"diskhook/storage/lock"
	"diskhook/storage/repository/format"
)

const mib = 1 << 20

// Conform tests a format. parameters are of a place that is not there yet; again opens
// it a second time as another host would, with a service of its own.
func Conform(t *testing.T, f format.Format, parameters map[string]string, again func() (format.Place, error)) {
	t.Run("create", func(t *testing.T) { creates(t, f, parameters) })
	here, err := f.Open(t.Context(), parameters)
	must(t, err)
	there, err := again()
	must(t, err)
	t.Run("documents", func(t *testing.T) { documents(t, here, there) })
	t.Run("fence", func(t *testing.T) { fenced(t, here, there) })
	t.Run("locks", func(t *testing.T) { locks(t, here, there) })
	t.Run("volumes", func(t *testing.T) { volumes(t, here, there) })
	must(t, errors.Join(here.Close(), there.Close()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kindOf(t *testing.T, err error, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%v: it is not %v", err, kind)
	}
}

func creates(t *testing.T, f format.Format, parameters map[string]string) {
	ctx := t.Context()
	_, err := f.Open(ctx, parameters)
	kindOf(t, err, failure.NotFound)
	_, err = f.Open(ctx, map[string]string{"no such": "parameter"})
	kindOf(t, err, failure.Usage)
	must(t, f.Create(ctx, parameters))
	must(t, f.Create(ctx, parameters)) // begun, or there
	p, err := f.Open(ctx, parameters)
	must(t, err)
	if c := p.Capabilities(); c.Format != f.Name() {
		t.Errorf("capabilities of %s", c.Format)
	}
	if c, err := p.Capacity(ctx); err != nil || c.Total <= 0 || c.Available > c.Total {
		t.Errorf("%+v: %v", c, err)
	}
	must(t, p.Close())
}

// open is a fence that lets everything pass.
func open() error { return nil }

// fenced asks before a change can be seen, and changes nothing when it is refused.
func fenced(t *testing.T, here, there format.Place) {
	ctx, id := t.Context(), uuid.NewString()
	must(t, here.Write(ctx, format.Image, id, []byte("old"), open))
	refused := errors.New("somebody else's by now")
	asked := 0
	closed := func() error {
		asked++
		if got, err := there.Read(ctx, format.Image, id); err != nil || string(got) != "old" {
			t.Errorf("it asks too late: %q: %v", got, err)
		}
		return refused
	}
	kindOf(t, here.Write(ctx, format.Image, id, []byte("new"), closed), refused)
	kindOf(t, here.Remove(ctx, format.Image, id, closed), refused)
	if got, err := there.Read(ctx, format.Image, id); err != nil || string(got) != "old" || asked != 2 {
		t.Errorf("asked %d times, and then %q: %v", asked, got, err)
	}
	must(t, here.Remove(ctx, format.Image, id, open))
}

func documents(t *testing.T, here, there format.Place) {
	ctx := t.Context()
	for _, kind := range format.Kinds {
		var ids []string
		for range 3 {
			ids = append(ids, uuid.NewString())
		}
		slices.Sort(ids)
		_, err := here.Read(ctx, kind, ids[0])
		kindOf(t, err, fs.ErrNotExist)
		for i, id := range ids {
			must(t, here.Write(ctx, kind, id, fmt.Appendf(nil, "first %d", i), open))
		}
		largest := bytes.Repeat([]byte("x"), format.MaxDocument)
		must(t, there.Write(ctx, kind, ids[1], largest, open))
		must(t, here.WriteReserved(ctx, kind, ids[1], []byte("reserved"), open))
		if got, err := there.Read(ctx, kind, ids[1]); err != nil || string(got) != "reserved" {
			t.Errorf("%s: %q: %v", kind, got, err)
		}
		must(t, there.Write(ctx, kind, ids[1], largest, open))
		if got, err := here.Read(ctx, kind, ids[1]); err != nil || !bytes.Equal(got, largest) {
			t.Errorf("%s: what another host wrote is not seen: %d bytes, %v", kind, len(got), err)
		}
		kindOf(t, here.Write(ctx, kind, ids[1], append(largest, 'x'), open), failure.Usage)
		if got, err := there.Read(ctx, kind, ids[0]); err != nil || string(got) != "first 0" {
			t.Errorf("%s: %q: %v", kind, got, err)
		}
		listed, err := there.List(ctx, kind)
		if diff := cmp.Diff(ids, listed); err != nil || diff != "" {
			t.Errorf("%s: %v: %s", kind, err, diff)
		}
		for _, id := range ids {
			must(t, there.Remove(ctx, kind, id, open))
			must(t, here.Remove(ctx, kind, id, open))
		}
		if listed, err := here.List(ctx, kind); err != nil || len(listed) > 0 {
			t.Errorf("%s: %v: %v", kind, listed, err)
		}
	}
	must(t, here.Write(ctx, format.Repository, format.Descriptor, []byte("about"), open))
	if got, err := there.Read(ctx, format.Repository, format.Descriptor); err != nil || string(got) != "about" {
		t.Errorf("%q: %v", got, err)
	}
	for _, bad := range []string{"", ".", "..", "../repo", "a/b", "A3F3B8B0-9A53-4A87-A5B5-2D5A9CB4B1D6"} {
		kindOf(t, here.Write(ctx, format.Image, bad, []byte("x"), open), failure.Usage)
		_, err := here.Read(ctx, format.Image, bad)
		kindOf(t, err, failure.Usage)
		kindOf(t, here.Remove(ctx, format.Image, bad, open), failure.Usage)
	}
}

func locks(t *testing.T, here, there format.Place) {
	ctx := t.Context()
	mine, err := here.TryLock(ctx, "work-1")
	must(t, err)
	must(t, mine.Check())
	if mine.TakenOver() {
		t.Error("a lock that nobody had was taken over")
	}
	_, err = there.TryLock(ctx, "work-1")
	kindOf(t, err, lock.ErrHeld)
	if held, err := there.Held(ctx, "work-1"); err != nil || !held {
		t.Errorf("held: %v: %v", held, err)
	}
	if held, err := there.Held(ctx, "work-2"); err != nil || held {
		t.Errorf("another is held: %v: %v", held, err)
	}
	other, err := there.TryLock(ctx, "work-2")
	must(t, err)
	other.Release()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	_, err = there.Lock(short, "work-1")
	cancel()
	kindOf(t, err, lock.ErrHeld)

	got := make(chan error, 1)
	go func() {
		l, err := there.Lock(ctx, "work-1")
		if err == nil {
			err = l.Check()
			l.Discard()
		}
		got <- err
	}()
	time.Sleep(50 * time.Millisecond)
	mine.Release()
	must(t, <-got)
	if held, err := here.Held(ctx, "work-1"); err != nil || held {
		t.Errorf("held after all: %v: %v", held, err)
	}
	counting(t, here, there)
}

// counting has two of them take turns, also while lock files go away.
func counting(t *testing.T, here, there format.Place) {
	const each = 40
	var count atomic.Int64
	done := make(chan error, 2)
	for _, p := range []format.Place{here, there} {
		go func() {
			for i := range each {
				l, err := p.Lock(t.Context(), "counting")
				if err != nil {
					done <- err
					return
				}
				n := count.Load()
				runtime.Gosched()
				count.Store(n + 1) // the lock is what makes this one step
				if i%2 == 0 {
					l.Discard()
				} else {
					l.Release()
				}
			}
			done <- nil
		}()
	}
	must(t, errors.Join(<-done, <-done))
	if n := count.Load(); n != 2*each {
		t.Errorf("%d of %d were counted", n, 2*each)
	}
}

func volumes(t *testing.T, here, there format.Place) {
	ctx := t.Context()
	raw, overlay := uuid.NewString(), uuid.NewString()
	kindOf(t, here.OpenVolume(ctx, raw, imagecheck.Raw, false), failure.NotFound)
	fresh, err := here.Make(ctx, raw, imagecheck.Raw, 4*mib)
	must(t, err)
	must(t, here.OpenVolume(ctx, raw, imagecheck.Raw, true))
	path := here.Path(raw, imagecheck.Raw)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	if fresh {
		zero(t, f, 0, 4*mib)
	}
	data := bytes.Repeat([]byte("data"), mib/4)
	_, err = f.WriteAt(data, mib)
	must(t, err)
	must(t, here.Flush(ctx, raw, imagecheck.Raw))
	if fresh, err := here.Make(ctx, raw, imagecheck.Raw, 4*mib); err != nil || fresh {
		t.Errorf("a volume with data is fresh: %v: %v", fresh, err)
	}
	// Another host may be kept from what is open for writing here.
	if fresh, err := there.Make(ctx, raw, imagecheck.Raw, 4*mib); fresh || err != nil && !errors.Is(err, failure.Conflict) {
		t.Errorf("a volume with data is fresh elsewhere: %v: %v", fresh, err)
	}
	if n, err := there.Allocated(ctx, raw, imagecheck.Raw); err != nil || n < mib {
		t.Errorf("%d bytes: %v", n, err)
	}
	must(t, here.Grow(ctx, raw, imagecheck.Raw, 6*mib))
	zero(t, f, 4*mib, 2*mib)
	must(t, here.Grow(ctx, raw, imagecheck.Raw, 2*mib)) // it never shrinks
	zero(t, f, 5*mib, mib)

	_, err = here.Make(ctx, overlay, imagecheck.QCOW2, 2*mib)
	must(t, err)
	if b := here.Backing(raw, imagecheck.Raw); b != there.Backing(raw, imagecheck.Raw) {
		t.Errorf("each host has a name of its own: %s", b)
	}
	all, err := there.Data(ctx)
	must(t, err)
	for _, wanted := range []format.Data{{ID: raw, Kind: imagecheck.Raw}, {ID: overlay, Kind: imagecheck.QCOW2}} {
		if !slices.Contains(all, wanted) {
			t.Errorf("%v is not in %v", wanted, all)
		}
	}
	must(t, imagelock.Read(f))
	kindOf(t, here.Delete(ctx, raw, imagecheck.Raw), failure.Conflict)
	erase := format.Erasure{Zero: true, Discard: true}
	kindOf(t, here.Erase(ctx, raw, imagecheck.Raw, erase, nil), failure.Conflict)
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, mib); err != nil || !bytes.Equal(got, data) {
		t.Errorf("what somebody reads was erased: %v", err)
	}
	must(t, f.Close())
	for _, v := range all {
		must(t, there.CloseVolume(ctx, v.ID, v.Kind)) // it may be on the same host
		must(t, here.CloseVolume(ctx, v.ID, v.Kind))
		must(t, here.Erase(ctx, v.ID, v.Kind, erase, nil))
	}
	must(t, here.OpenVolume(ctx, raw, imagecheck.Raw, false))
	f, err = os.Open(path)
	must(t, err)
	zero(t, f, 0, 4*mib)
	must(t, f.Close())
	for _, v := range all {
		must(t, here.CloseVolume(ctx, v.ID, v.Kind))
		must(t, here.Delete(ctx, v.ID, v.Kind))
		must(t, here.Delete(ctx, v.ID, v.Kind))
		must(t, here.Erase(ctx, v.ID, v.Kind, erase, nil))
	}
	if all, err := here.Data(ctx); err != nil || len(all) > 0 {
		t.Errorf("left: %v: %v", all, err)
	}
	for _, bad := range []string{"", "../x", "repo"} {
		_, err := here.Make(ctx, bad, imagecheck.Raw, mib)
		kindOf(t, err, failure.Usage)
		kindOf(t, here.Delete(ctx, bad, imagecheck.Raw), failure.Usage)
	}
}

func zero(t *testing.T, f *os.File, at, n int64) {
	t.Helper()
	got := make([]byte, n)
	if _, err := f.ReadAt(got, at); err != nil || !bytes.Equal(got, make([]byte, n)) {
		t.Errorf("%d bytes at %d do not read zero: %v", n, at, err)
	}
}
