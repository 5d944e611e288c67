// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/failure"
)

// The words of decisions, by what was observed of r1, r2 and r4.
func TestDecide(t *testing.T) {
	with := func(m *Mark, change func(*Mark)) *Mark { change(m); return m }
	clean := func(m *Mark) *Mark { return with(m, func(m *Mark) { m.Clean = true }) }
	suspect := func(m *Mark) *Mark { return with(m, func(m *Mark) { m.Suspect = Hung }) }
	away := Observed{Image: errors.New("no such file"), NoMark: errors.New("no such file")}
	one := func(id string) *Mark { return mark(id, 1, raise1, "") }
	two := func(id string) *Mark { return mark(id, 2, raise2, raise1) }
	pair := func(id string) *Mark {
		return with(two(id), func(m *Mark) { m.Generation.With = []string{"r1", "r2"} })
	}
	later := func(id string, number uint64, raise string) *Mark { // from generation 1, without r1
		m := mark(id, number, raise, raise1)
		m.Generation.From.Number, m.Generation.With = 1, []string{"r2", "r4"}
		return m
	}
	for name, c := range map[string]struct {
		seen    [3]Observed
		known   Known
		intent  *Intent
		open    string
		unclean bool
		left    string // of the first that is left out
		stale   bool
		veto    string // line
	}{
		"all clean": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: clean(one("r2"))}, {Mark: clean(one("r4"))}}, open: "r1 r2 r4"},
		"one clean mark is enough": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: one("r2")}, {Mark: one("r4")}}, open: "r1 r2 r4"},
		"unclean, three": {
			seen: [3]Observed{{Mark: one("r1")}, {Mark: one("r2")}, {Mark: one("r4")}}, open: "r1 r2 r4", unclean: true},
		"unclean, two": {
			seen: [3]Observed{{Mark: one("r1")}, {Mark: one("r2")}, away}, open: "r1 r2", unclean: true, left: "no such file",
			veto: "replica set db: it was not closed cleanly, and 2 replicas cannot outvote each other (r4: no such file); bring r4 back, or compare them with `diskhook quorum resync db`, which asks for one to believe only where they differ"},
		"one is older": {
			seen: [3]Observed{{Mark: clean(pair("r1"))}, {Mark: clean(pair("r2"))}, {Mark: clean(one("r4"))}}, open: "r1 r2",
			left: "it is of generation 1, the newest is 2", stale: true},
		"too few of the newest": {
			seen: [3]Observed{{Mark: clean(pair("r1"))}, away, {Mark: clean(one("r4"))}}, open: "r1", left: "no such file",
			veto: "replica set db: 1 of its replicas have the newest generation 2, 2 are needed (r2: no such file; r4: it is of generation 1, the newest is 2); bring r2 back, or believe one that is there with `diskhook quorum resync --from r1 db`"},
		"a raise that did not end": {
			seen: [3]Observed{{Mark: two("r1")}, {Mark: clean(one("r2"))}, {Mark: clean(one("r4"))}}, open: "r1 r2 r4"},
		"a raise that did not end, of a replica that was away when the others went on": {
			seen: [3]Observed{{Mark: pair("r1")}, {Mark: pair("r2")}, {Mark: later("r4", 3, raise3)}}, open: "r1 r2", unclean: true,
			left: "it is of generation 1, the newest is 2", stale: true,
			veto: "replica set db: it was not closed cleanly, and 2 replicas cannot outvote each other (r4: it is of generation 1, the newest is 2); compare them with `diskhook quorum resync db`, which asks for one to believe only where they differ"},
		"the host knows that it ended": {
			seen: [3]Observed{{Mark: clean(two("r1"))}, {Mark: clean(two("r2"))}, {Mark: clean(one("r4"))}}, known: Known{Number: 2, Raise: raise2}, open: "r1 r2",
			left: "it is of generation 1, the newest is 2", stale: true},
		"all are older than this host knows": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: clean(one("r2"))}, {Mark: clean(one("r4"))}}, known: Known{Number: 2, Raise: raise2}, open: "r1 r2 r4",
			veto: "replica set db: the newest generation that this host has written is not there: it has written 2, there is 1; name the replica to believe: `diskhook quorum resync --from r1 db`"},
		"suspect": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: suspect(one("r2"))}, {Mark: clean(one("r4"))}}, open: "r1 r4", left: "suspect: hung", stale: true},
		"no mark": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {}, {Mark: clean(one("r4"))}}, open: "r1 r4", left: "it has no mark, so nobody knows what it holds"},
		"a suspect is not named": {
			seen: [3]Observed{{Mark: one("r1"), Doubt: &Doubt{Reason: Mismatch}}, {Mark: one("r2")}, away}, known: Known{Number: 2, Raise: raise2}, open: "r1 r2", unclean: true, left: "no such file",
			veto: "replica set db: the newest generation that this host has written is not there: it has written 2, there is 1 (r4: no such file); bring r4 back, or believe one that is there with `diskhook quorum resync --from r2 db`"},
		"another set's": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: with(one("r2"), func(m *Mark) { m.Set = strings.Replace(setUUID, "6", "7", 1) })}, {Mark: clean(one("r4"))}},
			open: "r1 r4", left: "its mark is of another replica set, 79b6b942-b5bf-4740-bb95-6752ffbd3bcf"},
		"a copy of another replica": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: one("r1")}, {Mark: clean(one("r4"))}}, open: "r1 r4", left: "its mark is of replica r1"},
		"nothing": {
			left: "it has no mark, so nobody knows what it holds", unclean: true,
			veto: "replica set db: no replica has a mark that tells what it holds (r1: it has no mark, so nobody knows what it holds; r2: it has no mark, so nobody knows what it holds; r4: it has no mark, so nobody knows what it holds); name the replica to believe: `diskhook quorum resync --from ID db`"},
		"being built": {
			seen: [3]Observed{{Mark: clean(one("r1"))}, {Mark: clean(one("r2"))}, {Mark: clean(one("r4"))}}, open: "r1 r2 r4", intent: &Intent{Verb: verbBuild},
			veto: "replica set db: its build did not end; run the same `diskhook quorum build … db` again"},
		"a resync from one did not end": {
			seen: [3]Observed{{Mark: one("r1")}, {Mark: suspect(one("r2"))}, {Mark: suspect(one("r4"))}}, open: "r1", unclean: true, left: "suspect: hung", stale: true,
			intent: &Intent{Verb: verbResync, Replica: "r2"},
			veto:   "replica set db: 1 of its replicas have the newest generation 1, 2 are needed (r2: suspect: hung; r4: suspect: hung); name the replica to believe: `diskhook quorum resync --from r2 db`"},
	} {
		t.Run(name, func(t *testing.T) {
			set := three()
			set.Intent = c.intent
			for i := range c.seen {
				c.seen[i].ID = set.Replicas[i].ID
			}
			d := Decide(set, c.seen[:], c.known)
			line := ""
			if d.Veto != nil {
				line = failure.Line(d.Veto)
			}
			if got := strings.Join(d.Open, " "); got != c.open || d.Unclean != c.unclean || line != c.veto {
				t.Errorf("opens %q, want %q; unclean %v; veto\n%s, want\n%s", got, c.open, d.Unclean, line, c.veto)
			}
			var left LeftOut
			if len(d.Left) > 0 {
				left = d.Left[0]
			}
			if left.Why != c.left || left.Stale != c.stale {
				t.Errorf("left out %+v, want %q stale %v", left, c.left, c.stale)
			}
		})
	}
}

// A replica that somebody put back from a backup does not make the host forget
// what it has written.
func TestABackupDoesNotUndoAGeneration(t *testing.T) {
	set := three()
	seen := []Observed{{ID: "r1", Mark: mark("r1", 2, raise2, raise1)}, {ID: "r2", Mark: mark("r2", 2, raise2, raise1)}, {ID: "r4", Mark: mark("r4", 1, raise1, "")}}
	seen[0].Mark.Clean = true
	if d := Decide(set, seen, Known{Number: 2, Raise: raise2}); d.Veto != nil || strings.Join(d.Open, " ") != "r1 r2" || d.Next != 3 {
		t.Errorf("%+v", d)
	}
	// Without that knowledge it looks like a raise that did not reach r4: then
	// the old generation would count, unless its replicas are too few.
	seen[1].Mark.Suspect = Mismatch
	if d := Decide(set, seen, Known{Number: 2, Raise: raise2}); d.Veto == nil {
		t.Errorf("%+v", d)
	}
}

// How many replicas that are open have to agree after a power cut: more than half
// of them, and more than may lack what was acknowledged.
func TestOutvotes(t *testing.T) {
	five := []string{"r1", "r2", "r3", "r4", "r5"}
	for name, c := range map[string]struct {
		replicas, threshold int
		with                []string // the generation that is unclean
		equal               bool     // at its beginning
		open                int
		want                int
	}{
		"three of three agree":               {3, 2, five[:3], true, 3, 2},
		"all have to take a write":           {3, 3, five[:3], true, 3, 2},
		"an even number, one is away":        {4, 3, five[:4], true, 3, 2},
		"an even number, all are there":      {4, 3, five[:4], true, 4, 3},
		"two may lack a write":               {5, 3, five, true, 3, 3},
		"two may lack it, four are there":    {5, 3, five, true, 4, 3},
		"no more than these three voted":     {5, 3, five[:3], true, 3, 2},
		"more voted before these three":      {5, 3, five[:3], false, 3, 3},
		"two may lack it, a read needs four": {6, 4, append([]string{"r6"}, five...), true, 4, 3},
		"a minority may be asked for":        {5, 2, five, true, 3, 2},
		"a minority of many":                 {5, 2, five, false, 5, 3},
	} {
		t.Run(name, func(t *testing.T) {
			set := Set{Name: "db", UUID: setUUID, Threshold: c.threshold}
			var seen []Observed
			for i := range c.replicas {
				id := fmt.Sprintf("r%d", i+1)
				set.Replicas = append(set.Replicas, Replica{ID: id})
				m := mark(id, 2, raise2, raise1)
				m.Generation.With, m.Generation.From.Clean = c.with, c.equal
				if slices.Contains(c.with[:c.open], id) {
					seen = append(seen, Observed{ID: id, Mark: m})
				}
			}
			d := Decide(set, seen, Known{Number: 2, Raise: raise2})
			if !d.Unclean || len(d.Open) != c.open {
				t.Fatalf("%+v", d)
			}
			if got := d.outvotes(set, c.open); got != c.want {
				t.Errorf("%d have to agree, want %d: %+v", got, c.want, d)
			}
		})
	}
}
