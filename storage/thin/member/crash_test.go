// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"fmt"
	"testing"
)

// stage is a world before a verb: host one has a volume "v1" that its guest writes,
// "v2" is offline and has contents, "v3" is at host two.
func stage(t *testing.T) *world {
	w := newWorld(t, t.TempDir(), 2)
	one, two := w.hosts[0], w.hosts[1]
	one.start()
	two.start()
	for range 3 {
		w.create(one)
	}
	one.request(24)
	two.request(12)
	one.attach("v1")
	one.attach("v2")
	two.attach("v3")
	for v := range uint64(4) {
		one.write("v1", v)
		one.write("v2", v+2)
		two.write("v3", v)
	}
	one.detach("v2")
	w.check()
	return w
}

// verbs are what a host can be killed in the middle of.
var verbs = []struct {
	name  string
	do    func(h *node) error
	after func(h *node) // what is so once it was done
}{
	{"attach", func(h *node) error { _, err := h.Attach(h.w.Context(), "v2", attachOptions); return err },
		func(h *node) { h.reads("v2"); h.write("v2", 2) }},
	{"detach", func(h *node) error { return h.Detach(h.w.Context(), "v1") },
		func(h *node) {
			if v := h.w.record("v1"); v.State.On() {
				h.w.Fatalf("%+v", v)
			}
			h.w.hosts[1].attach("v1")
			h.w.hosts[1].reads("v1")
		}},
	{"request", func(h *node) error { _, err := h.Request(h.w.Context(), 5); return err }, func(*node) {}},
	{"use", func(h *node) error { _, err := h.Use(h.w.Context()); return err }, func(*node) {}},
	{"free", func(h *node) error { _, err := h.Free(h.w.Context(), 6); return err }, func(*node) {}},
	{"rebuild", func(h *node) error { return h.Rebuild(h.w.Context()) }, func(*node) {}},
	{"snapshot", func(h *node) error { return h.snapshot("v1", 9) },
		func(h *node) {
			h.write("v1", 0)
			h.w.hosts[1].attach("s9")
			h.w.hosts[1].reads("s9")
			h.w.hosts[1].write("s9", 1)
		}},
	{"start", func(h *node) error { return h.Start(h.w.Context()) }, func(h *node) { h.reads("v1") }},
	{"stop and start", func(h *node) error { return errors.Join(h.Stop(h.w.Context()), h.Start(h.w.Context())) }, func(h *node) { h.reads("v1") }},
}

// snapshot of a volume as it is now.
func (h *node) snapshot(of string, n int) error {
	name := fmt.Sprint("s", n)
	if h.w.wrote[name] == nil {
		has := map[uint64]uint32{}
		for v, stamp := range h.w.wrote[of] {
			has[v] = stamp
		}
		h.w.wrote[name] = has
	}
	return h.Snapshot(h.w.Context(), of, id(2000+n), name)
}

// A program that is killed before any of its steps leaves everything as it may be,
// on the disks and for the guests, and the same verb ends it; so does a host that
// boots.
func TestKilled(t *testing.T) {
	for _, verb := range verbs {
		for _, boots := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, boots %t", verb.name, boots), func(t *testing.T) {
				t.Parallel()
				stride := 1
				if boots { // what is on the disks is the same; a few will do
					stride = 3
				}
				for at := 0; ; at += stride {
					if killed := kill(t, verb.do, verb.after, at, boots); !killed {
						if at < 3 {
							t.Errorf("it has %d steps only", at)
						}
						return
					}
				}
			})
		}
	}
}

// killed does something, of which the program is killed before a step, and says whether it
// came so far. The host boots after it, or it does not.
func (h *node) killed(do func(*node) error, at int, boots bool) bool {
	h.w.Helper()
	h.life.left = at
	err := do(h)
	killed := h.life.left == 0
	h.life.left = -1
	if !killed {
		h.must(err)
	}
	h.w.check()
	if boots {
		h.boot()
		h.start()
		h.w.check()
	}
	return killed
}

func kill(t *testing.T, do func(*node) error, after func(*node), at int, boots bool) (killed bool) {
	w := stage(t)
	one := w.hosts[0]
	defer func() {
		if t.Failed() {
			t.Logf("killed before step %d", at)
		}
	}()
	killed = one.killed(do, at, boots)
	w.must(do(one))
	w.check()
	after(one)
	w.hosts[1].reads("v3")
	w.hosts[1].write("v3", 5)
	w.check()
	return killed
}
