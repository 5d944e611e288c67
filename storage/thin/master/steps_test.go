// SPDX-License-Identifier: Apache-2.0

package master_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group/grouptest"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/request"
)

// Each verb is stopped at each write that it makes, and run again: it ends as if it
// had not been stopped.
func TestEveryStep(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		before, verb func(w *world) error
		asked        bool // past the host's header, which Check would notice
	}{
		"init": {nil, func(w *world) error {
			_, err := w.Init(ctx, master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize})
			return err
		}, false},
		"claim": {with(func(*world) {}), func(w *world) error { _, err := w.Claim(ctx, 5); return err }, false},
		"join": {with(func(*world) {}), func(w *world) error {
			_, err := w.Join(ctx, master.Newcomer{UUID: id(1), Name: "one", Metadata: layout.MinWindow})
			return err
		}, false},
		"rejoin": {with(func(w *world) {
			w.join(1, "one")
			w.done(1, request.Leave{})
		}), func(w *world) error {
			_, err := w.Join(ctx, master.Newcomer{UUID: id(1), Name: "one", Rejoin: true, Metadata: layout.MinWindow})
			return err
		}, false},
		"create": {with(func(w *world) { w.join(1, "one") }), func(w *world) error {
			_, err := w.Channel(id(1)).Ask(ctx, 1, request.Create{ID: id(9), Name: "vol", Size: 512})
			return err
		}, true},
		"clone": {with(func(w *world) {
			w.join(1, "one")
			w.done(1, request.Grant{Blocks: 5})
			w.done(1, request.Create{ID: id(9), Name: "vol", Size: 8 * blockSize})
			w.done(1, request.BeginAttach{Volume: 1})
			w.put(1, layout.MappingRun{Physical: 1, Length: 2})
			w.done(1, request.FinishDetach{Volume: 1})
		}), func(w *world) error {
			_, err := w.Channel(id(1)).Ask(ctx, 6, request.Clone{Of: 1, ID: id(8), Name: "copy"})
			return err
		}, true},
		"recover": {with(func(w *world) {
			w.join(1, "one")
			w.done(1, request.Create{ID: id(9), Name: "vol", Size: 512})
			w.done(1, request.BeginAttach{Volume: 1})
			w.must(w.Fence(ctx, "one", 1, "word"))
		}), func(w *world) error { _, err := w.Recover(ctx, "one", false); return err }, true},
		"grow": {with(func(*world) {}), func(w *world) error { _, err := w.Grow(ctx, 2*blocks*blockSize); return err }, false},
	} {
		t.Run(name, func(t *testing.T) {
			var want layout.Map
			for steps := -1; ; steps++ {
				w := &world{nominee(t, grouptest.New(1<<30)), t, nil, map[uuid.UUID]uint64{}}
				w.g = w.Group.(*grouptest.Group)
				if c.before != nil {
					w.must(c.before(w))
				}
				w.g.CutAfter(steps)
				err := c.verb(w)
				off := w.g.Off()
				if off != errors.Is(err, layouttest.ErrPower) && !(off && err == nil) {
					t.Fatalf("after %d steps: %v", steps, err)
				}
				n := 0
				w.g.Boot(func() bool { n++; return n%3 != 0 })
				if err := c.verb(w); err != nil {
					t.Fatalf("run again after %d steps: %v", steps, err)
				}
				got, _ := w.readMap()
				got.Claim = uuid.Nil // drawn anew in each world
				if steps < 0 {
					want = got
					continue
				}
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("after %d steps\n%s", steps, diff)
				}
				found, err := w.Check(ctx, master.CheckOptions{Offline: true})
				if err != nil || len(found) != 0 && !c.asked {
					t.Fatalf("after %d steps: %v, %v", steps, found, err)
				}
				if !off {
					if steps < 3 {
						t.Fatalf("only %d steps", steps)
					}
					return
				}
			}
		})
	}
}

// with begins with a cluster.
func with(do func(w *world)) func(w *world) error {
	return func(w *world) error {
		_, err := w.Init(context.Background(), master.Shape{Bytes: blocks * blockSize, BlockSize: blockSize})
		if err == nil {
			do(w)
		}
		return err
	}
}

// What a create left that stopped before its commit serves the next one, though the
// volume gets another number then.
func TestLeftover(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	w.join(1, "one")
	w.join(2, "two")
	left := false
	for steps := 0; !left; steps++ {
		w.g.CutAfter(steps)
		_, err := w.Channel(id(1)).Ask(ctx, 1, request.Create{ID: id(9), Name: "vol", Size: 512})
		w.g.Boot(func() bool { return true })
		if err == nil {
			t.Fatal("it never stopped between mapping and commit")
		}
		_, err = layout.ReadMapping(volumeOf(w, id(9)), clusterID, id(9), 1)
		left = err == nil
	}
	w.done(2, request.Create{ID: id(8), Name: "other", Size: 512})
	w.sequence[id(1)] = 0
	if r := w.done(1, request.Create{ID: id(9), Name: "vol", Size: 512}); r.Number != 2 || w.stored(2).Number != 2 || w.stored(1).Number != 1 {
		t.Errorf("%+v, stored %+v and %+v", r, w.stored(1), w.stored(2))
	}
}

// volumeOf is a disk that may not be there.
func volumeOf(w *world, object uuid.UUID) layout.Device {
	name := layout.Thin.Name(object)
	if w.g.Disk(name) == nil {
		return layouttest.New(name, 1<<20)
	}
	return w.disk(name)
}

// A host that has been replaced is refused, and changes nothing.
func TestDeposed(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	w.join(1, "one")
	next := nominee(t, w.g)
	if _, err := next.Claim(ctx, 1); !errors.Is(err, layout.ErrStale) {
		t.Fatalf("an epoch that was used: %v", err)
	}
	if epoch, is, err := next.Reigns(ctx); epoch != 1 || is || err != nil {
		t.Fatal(epoch, is, err)
	}
	if err := next.Fence(ctx, "one", 0, "word"); !errors.Is(err, layout.ErrStale) || failure.HintOf(err) == "" {
		t.Fatalf("a host that never was master: %v", err)
	}
	for range 2 {
		if epoch, err := next.Claim(ctx, 7); err != nil || epoch != 7 {
			t.Fatal(epoch, err)
		}
	}
	before, stamp := w.readMap()
	for name, do := range map[string]func() error{
		"ask":     func() error { _, err := w.ask(1, request.Grant{Blocks: 1}); return err },
		"fence":   func() error { return w.Fence(ctx, "one", 0, "word") },
		"collect": func() error { _, err := w.Collect(ctx); return err },
		"join":    func() error { _, err := w.Join(ctx, master.Newcomer{UUID: id(2), Name: "two"}); return err },
		"serve":   func() error { return w.Serve(ctx, master.Pace{}) },
		"claim":   func() error { _, err := w.Claim(ctx, 6); return err },
	} {
		if err := do(); !errors.Is(err, layout.ErrStale) || failure.HintOf(err) == "" {
			t.Errorf("%s: %v, hint %q", name, err, failure.HintOf(err))
		}
	}
	if _, err := w.Claim(ctx, 6); !strings.Contains(failure.HintOf(err), "on-master --epoch 8") {
		t.Errorf("an epoch that was used: hint %q", failure.HintOf(err))
	}
	if err := next.Fence(ctx, "one", 6, "word"); !errors.Is(err, layout.ErrStale) {
		t.Errorf("fenced in an epoch before: %v", err)
	}
	if m, now := w.readMap(); !cmp.Equal(before, m) || now != stamp {
		t.Error("something changed")
	}
	msg, err := request.Encode(1, 8, request.Grant{Blocks: 1})
	w.must(err)
	if _, err := next.Answer(ctx, id(1), msg); !errors.Is(err, layout.ErrStale) {
		t.Errorf("a request that knows a later master: %v", err)
	}
}

// A claim that failed leaves nothing that becomes a mastership later: the number is
// free, another host may be given it, and there is one master of it.
func TestClaimThatFailed(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	w.join(1, "one")
	first, other := nominee(t, w.g), nominee(t, w.g)
	w.g.CutAfter(1) // in the middle of the claim's first write
	if _, err := first.Claim(ctx, 5); !errors.Is(err, layouttest.ErrPower) {
		t.Fatal(err)
	}
	w.g.Boot(func() bool { return false })
	if epoch, err := other.Claim(ctx, 5); err != nil || epoch != 5 {
		t.Fatal(epoch, err)
	}
	if epoch, is, err := first.Reigns(ctx); is || err != nil {
		t.Errorf("two masters of epoch %d, %v", epoch, err)
	}
	for name, do := range map[string]func() error{
		"fence": func() error { return first.Fence(ctx, "one", 0, "word") },
		"claim": func() error { _, err := first.Claim(ctx, 5); return err },
		"serve": func() error { return first.Serve(ctx, master.Pace{}) },
	} {
		if err := do(); !errors.Is(err, layout.ErrStale) || failure.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := other.Fence(ctx, "one", 5, "word"); err != nil {
		t.Error(err)
	}
}

// A host that stepped down does nothing as the master any more, though nobody
// followed it, until it claims an epoch, which may be the one that it had.
func TestResign(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	w.join(1, "one")
	for range 2 {
		w.must(w.Resign(ctx))
	}
	if _, is, err := w.Reigns(ctx); is || err != nil {
		t.Fatal(is, err)
	}
	if _, err := w.Collect(ctx); !errors.Is(err, layout.ErrStale) || failure.HintOf(err) == "" || strings.Contains(err.Error(), "later epoch") {
		t.Errorf("%v", err)
	}
	if err := w.Serve(ctx, master.Pace{}); !errors.Is(err, layout.ErrStale) {
		t.Error(err)
	}
	if _, err := w.Claim(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Collect(ctx); err != nil {
		t.Error(err)
	}
	next := nominee(t, w.g)
	if err := next.Resign(ctx); err != nil { // it never was one
		t.Error(err)
	}
}
