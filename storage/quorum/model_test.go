// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is a set whose host may lose power between any two marks, and whose
// replicas come and go. Its content is the writes that the guest was told of,
// each in a place of its own; a write that was in flight when the power failed
// makes replicas unlike without anybody having been told that it succeeded.
type model struct {
	t     *rapid.T
	set   Set
	known Known
	disks map[string]*disk
	acked int // writes that the guest was told of
	raise int

	running []string // replicas that the daemon has open; nil: the set is closed
	gen     Generation
	// behind are those that missed a write which QEMU acknowledged, as long as
	// its report is on the way. They miss all others, too.
	behind []string
	// equal: the replicas that are open were equal, or made so.
	equal bool
	// inOrder: the set was left cleanly, and nobody could write since.
	inOrder bool
}

type disk struct {
	there bool
	mark  *Mark
	// has are the acknowledged writes it has, a bit each; torn: it may have parts
	// of others.
	has    uint64
	torn   bool
	backup *disk // what somebody may put back
}

// mostWrites are what a disk has bits for.
const mostWrites = 64

func newModel(t *rapid.T) *model {
	n := rapid.IntRange(2, 6).Draw(t, "n")
	m := &model{t: t, disks: map[string]*disk{}}
	m.set = Set{Name: "db", UUID: "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", Threshold: rapid.IntRange(n/2+1, n).Draw(t, "threshold"), ReadPattern: Vote, NextID: n + 1}
	for i := range n {
		id := fmt.Sprintf("r%d", i+1)
		m.set.Replicas = append(m.set.Replicas, Replica{ID: id})
		m.disks[id] = &disk{there: true}
	}
	m.inOrder = m.lift(Origin{}, 1, m.set.IDs(), true, -1)
	return m
}

// all are the acknowledged writes.
func (m *model) all() uint64 { return 1<<m.acked - 1 }

// lacking is how many of these replicas do not have a write.
func (m *model) lacking(ids []string, write int) (n int) {
	for _, id := range ids {
		if m.disks[id].has>>write&1 == 0 {
			n++
		}
	}
	return n
}

func (m *model) decide(known Known) Decision {
	var seen []Observed
	for _, id := range m.set.IDs() {
		o := Observed{ID: id, Mark: m.disks[id].mark}
		if !m.disks[id].there {
			o.Image, o.NoMark, o.Mark = errors.New("away"), errors.New("away"), nil
		}
		seen = append(seen, o)
	}
	return Decide(m.set, seen, known)
}

// safe fails when a decision would let an acknowledged write lose: in a clean
// set everybody who votes has all of them, in an unclean one those that lack one
// are too few to outvote the others, also where no more than the threshold of
// them can be opened after all.
func (m *model) safe(d Decision) {
	if d.Veto != nil {
		return
	}
	if len(d.Open) < m.set.Threshold {
		m.t.Fatalf("opens %v: %s", d.Open, m)
	}
	if !d.Unclean {
		for _, id := range d.Open {
			if disk := m.disks[id]; disk.has != m.all() || disk.torn {
				m.t.Fatalf("%s lacks writes or is torn, yet votes in a clean set: %s", id, m)
			}
		}
		return
	}
	least := max(m.set.Threshold, votersOfUnclean)
	for w := range m.acked {
		if lacking := m.lacking(d.Open, w); lacking >= d.outvotes(m.set, least) {
			m.t.Fatalf("%d of %v lack acknowledged write %d, %d of %d outvote the others: %s", lacking, d.Open, w, d.outvotes(m.set, least), least, m)
		}
	}
}

// live fails when a set is vetoed, or taken for unclean, that was left in order
// and of which all replicas are there, however often the power failed since.
func (m *model) live(d Decision) {
	if m.running != nil {
		return
	}
	for _, disk := range m.disks {
		if !disk.there {
			return
		}
	}
	if m.inOrder && (d.Veto != nil || d.Unclean) {
		m.t.Fatalf("all was left in order, and it says %v, unclean %v: %s", d.Veto, d.Unclean, m)
	}
	m.decided(d)
}

// decided fails when an acknowledged write has no majority in a set of which
// everybody is open who was equal when the guest began to write.
func (m *model) decided(d Decision) {
	g := m.gen
	if d.Veto != nil || !d.Unclean || d.Base.Raise != g.Raise || !g.From.Clean || len(d.Open) != len(g.With) {
		return
	}
	for w := range m.acked {
		if has := len(d.Open) - m.lacking(d.Open, w); has < d.outvotes(m.set, len(d.Open)) {
			m.t.Fatalf("%d of %v have acknowledged write %d, which does not decide it: %s", has, d.Open, w, m)
		}
	}
}

func (m *model) String() string {
	text := fmt.Sprintf("threshold %d, acked %b, known %+v", m.set.Threshold, m.all(), m.known)
	for _, id := range slices.Sorted(maps.Keys(m.disks)) {
		disk := m.disks[id]
		text += fmt.Sprintf("\n  %s there %v, has %b, torn %v", id, disk.there, disk.has, disk.torn)
		if disk.mark != nil {
			text += fmt.Sprintf(", %+v", *disk.mark)
		}
	}
	return text
}

func (m *model) steps() map[string]func(*rapid.T) {
	steps := map[string]func(*rapid.T){}
	for name, do := range map[string]func(){
		"start": m.start, "write": m.write, "lag": m.lag, "fail": m.fail, "cut": m.cut, "stop": m.stop,
		"toggle": m.toggle, "rejoin": m.rejoin, "resync": m.resync, "believe": m.believe,
	} {
		steps[name] = func(t *rapid.T) { m.t = t; do() }
	}
	return steps
}

// No stale replica ever decides a read, whatever crashed, came back or was put
// back from a backup; and what was left in order can be opened.
func TestDecideAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		steps := m.steps()
		steps["save"] = func(t *rapid.T) { m.t = t; m.save() }
		steps["restore"] = func(t *rapid.T) { m.t = t; m.restore() }
		steps[""] = func(t *rapid.T) {
			m.t = t
			if m.running == nil {
				d := m.decide(m.known)
				m.safe(d)
				m.live(d)
			}
		}
		t.Repeat(steps)
	})
}

// A host that has never used the set, or lost its state, has the marks alone.
// They do as long as nobody puts an old replica back.
func TestDecideOnAnotherHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		steps := m.steps()
		steps[""] = func(t *rapid.T) {
			m.t = t
			if m.running == nil {
				m.safe(m.decide(Known{}))
			}
		}
		t.Repeat(steps)
	})
}
