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
// replicas come and go. Content is a count of acknowledged writes; a write that
// was in flight when the power failed makes replicas unlike without anybody
// having been told that it succeeded.
type model struct {
	t     *rapid.T
	set   Set
	known Known
	disks map[string]*disk
	acked int // writes that the guest was told of
	raise int

	running []string // replicas that the daemon has open; nil: the set is closed
	gen     Generation
	// behind is a replica that missed a write which QEMU acknowledged before
	// its report came; "" when the others have a new generation since.
	behind string
	// inOrder: the set was left cleanly, and nobody could write since.
	inOrder bool
}

type disk struct {
	there bool
	mark  *Mark
	// writes it has; torn: it may have parts of later ones.
	writes int
	torn   bool
	backup *disk // what somebody may put back
}

func newModel(t *rapid.T) *model {
	n := rapid.IntRange(2, 5).Draw(t, "n")
	m := &model{t: t, disks: map[string]*disk{}}
	m.set = Set{Name: "db", UUID: "69b6b942-b5bf-4740-bb95-6752ffbd3bcf", Threshold: n/2 + 1, ReadPattern: Vote, NextID: n + 1}
	for i := range n {
		id := fmt.Sprintf("r%d", i+1)
		m.set.Replicas = append(m.set.Replicas, Replica{ID: id})
		m.disks[id] = &disk{there: true}
	}
	m.inOrder = m.lift(Origin{}, 1, m.set.IDs(), true, -1)
	return m
}

// lift is Service.raise, with power for so many marks; -1 is enough.
func (m *model) lift(from Origin, next uint64, with []string, clean bool, power int) bool {
	m.raise++
	g := Generation{Number: next, Raise: fmt.Sprintf("%016x", m.raise), From: from, With: slices.Clone(with)}
	for _, id := range rapid.Permutation(with).Draw(m.t, "order") {
		if power == 0 {
			return false
		}
		power--
		m.disks[id].mark = &Mark{Set: m.set.UUID, Replica: id, Generation: g, Clean: clean}
	}
	m.inOrder = clean // all have it: who only sees the marks takes it for acknowledged
	if power == 0 {
		return false
	}
	m.known, m.gen = Known{g.Number, g.Raise}, g
	return true
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

// safe fails when a decision would let a stale replica decide a read.
func (m *model) safe(d Decision) {
	if d.Veto != nil {
		return
	}
	for _, id := range d.Open {
		switch disk := m.disks[id]; {
		case disk.writes == m.acked && !disk.torn:
		case d.Unclean && id == m.behind && len(d.Open) >= votersOfUnclean:
			// The one that the majority outvotes.
		case !d.Unclean:
			m.t.Fatalf("%s has %d of %d writes (torn %v), yet votes in a clean set: %s", id, disk.writes, m.acked, disk.torn, m)
		case disk.writes < m.acked:
			m.t.Fatalf("%s has %d of %d acknowledged writes, yet votes: %s", id, disk.writes, m.acked, m)
		}
	}
	if len(d.Open) < m.set.Threshold {
		m.t.Fatalf("opens %v: %s", d.Open, m)
	}
}

// live fails when a set is vetoed, or taken for unclean, that was left in order
// and of which all replicas are there, however often the power failed since.
func (m *model) live(d Decision) {
	if m.running != nil || !m.inOrder {
		return
	}
	for _, disk := range m.disks {
		if !disk.there {
			return
		}
	}
	if d.Veto != nil || d.Unclean {
		m.t.Fatalf("all was left in order, and it says %v, unclean %v: %s", d.Veto, d.Unclean, m)
	}
}

func (m *model) String() string {
	text := fmt.Sprintf("threshold %d, acked %d, known %+v", m.set.Threshold, m.acked, m.known)
	for _, id := range slices.Sorted(maps.Keys(m.disks)) {
		disk := m.disks[id]
		text += fmt.Sprintf("\n  %s there %v, %d writes, torn %v", id, disk.there, disk.writes, disk.torn)
		if disk.mark != nil {
			text += fmt.Sprintf(", %+v", *disk.mark)
		}
	}
	return text
}

// start opens the set, if it may be; the power may fail on the way.
func (m *model) start() {
	if m.running != nil {
		return
	}
	d := m.decide(m.known)
	m.safe(d)
	m.live(d)
	if d.Veto != nil {
		return
	}
	if !m.lift(d.Base, d.Next, d.Open, false, rapid.IntRange(-1, len(d.Open)).Draw(m.t, "power")) {
		return
	}
	m.running, m.inOrder = d.Open, false
	if d.Unclean {
		m.agree(d.Open)
	}
}

// agree is the resync by majority after an unclean start.
func (m *model) agree(ids []string) {
	if slices.Contains(ids, m.behind) {
		m.behind = ""
	}
	for _, id := range ids {
		m.disks[id].writes, m.disks[id].torn = m.acked, false
	}
}

// write reaches all replicas that are open, and is acknowledged.
func (m *model) write() {
	if m.running == nil {
		return
	}
	m.acked++
	for _, id := range m.running {
		if id != m.behind {
			m.disks[id].writes = m.acked
		}
	}
}

// lag is a write that one replica does not take; the power fails before
// anybody hears of it, or the others get a new generation.
func (m *model) lag() {
	if len(m.running) <= m.set.Threshold {
		return
	}
	m.behind = rapid.SampledFrom(m.running).Draw(m.t, "behind")
	m.write()
	if rapid.Bool().Draw(m.t, "heard") {
		m.drop(m.behind)
		return
	}
	m.running = nil
}

// fail is a replica that does not take a write: the others get a new
// generation before the write is acknowledged. Its own mark may not take.
func (m *model) fail() {
	if m.running == nil {
		return
	}
	m.drop(rapid.SampledFrom(m.running).Draw(m.t, "bad"))
}

func (m *model) drop(bad string) {
	rest := slices.DeleteFunc(slices.Clone(m.running), func(id string) bool { return id == bad })
	if len(rest) < m.set.Threshold {
		m.cut()
		return
	}
	for _, id := range rest {
		m.disks[id].torn = true // has the write, which nobody acknowledged yet
	}
	if !m.lift(Origin{m.gen.Number, m.gen.Raise, false}, m.gen.Number+1, rest, false, rapid.IntRange(-1, len(rest)).Draw(m.t, "power")) {
		m.running = nil
		return
	}
	m.running, m.behind = rest, ""
	m.agree(rest)
	m.write()
	if m.disks[bad].there && rapid.Bool().Draw(m.t, "told") {
		mark := *m.disks[bad].mark
		mark.Suspect, mark.Clean = WriteError, false
		m.disks[bad].mark = &mark
	}
}

// cut is a power cut while a write is in flight.
func (m *model) cut() {
	for _, id := range m.running {
		m.disks[id].torn = rapid.Bool().Draw(m.t, "torn")
	}
	m.running = nil
}

// stop flushes, and marks clean as many as it gets to.
func (m *model) stop() {
	if m.running == nil {
		return
	}
	power := rapid.IntRange(0, len(m.running)).Draw(m.t, "power")
	m.inOrder = power > 0
	for _, id := range m.running[:power] {
		m.disks[id].mark = &Mark{Set: m.set.UUID, Replica: id, Generation: m.gen, Clean: true}
	}
	m.running = nil
}

// toggle takes a replica that is not open away, or brings it back.
func (m *model) toggle() {
	id := rapid.SampledFrom(m.set.IDs()).Draw(m.t, "id")
	if !slices.Contains(m.running, id) {
		m.disks[id].there = !m.disks[id].there
	}
}

// resync is offline: what is stale gets what the voters have.
func (m *model) resync() {
	if m.running != nil {
		return
	}
	d := m.decide(m.known)
	m.safe(d)
	if d.Veto != nil {
		return
	}
	with := slices.Clone(d.Open)
	for _, l := range d.Left {
		if disk := m.disks[l.ID]; l.Stale {
			mark := *disk.mark
			mark.Suspect, mark.Clean = Unsynced, false
			disk.mark, disk.torn = &mark, true
			with = append(with, l.ID)
		}
	}
	if rapid.IntRange(0, 3).Draw(m.t, "dies") == 0 {
		return
	}
	m.agree(with)
	lifted := m.lift(d.Base, d.Next, with, true, rapid.IntRange(-1, len(with)).Draw(m.t, "power"))
	m.inOrder = m.inOrder || lifted
}

// believe is a resync from one replica, one that the operator knows is right.
func (m *model) believe() {
	source := rapid.SampledFrom(m.set.IDs()).Draw(m.t, "source")
	if disk := m.disks[source]; m.running != nil || !disk.there || disk.writes != m.acked || disk.torn {
		return
	}
	d := m.decide(m.known)
	m.inOrder = false
	with := []string{source}
	for _, id := range m.set.IDs() {
		if disk := m.disks[id]; id != source && disk.there {
			mark := *disk.mark
			mark.Suspect, mark.Clean = Unsynced, false
			disk.mark, disk.torn = &mark, true
			with = append(with, id)
		}
	}
	if len(with) < m.set.Threshold || rapid.IntRange(0, 2).Draw(m.t, "dies") == 0 {
		return
	}
	m.agree(with)
	m.inOrder = m.lift(d.Base, d.Next, with, true, rapid.IntRange(-1, len(with)).Draw(m.t, "power"))
}

// save and restore put a replica back to what it was when the set was closed,
// image and mark.
func (m *model) save() {
	if m.running == nil {
		disk := m.disks[rapid.SampledFrom(m.set.IDs()).Draw(m.t, "id")]
		old := *disk
		disk.backup = &old
	}
}

func (m *model) restore() {
	disk := m.disks[rapid.SampledFrom(m.set.IDs()).Draw(m.t, "id")]
	if m.running == nil && disk.backup != nil {
		there := disk.there
		*disk = *disk.backup
		disk.there, m.inOrder = there, false
	}
}

func (m *model) steps() map[string]func(*rapid.T) {
	steps := map[string]func(*rapid.T){}
	for name, do := range map[string]func(){
		"start": m.start, "write": m.write, "lag": m.lag, "fail": m.fail, "cut": m.cut,
		"stop": m.stop, "toggle": m.toggle, "resync": m.resync, "believe": m.believe,
	} {
		steps[name] = func(t *rapid.T) { m.t = t; do() }
	}
	return steps
}

// No stale replica ever votes, whatever crashed, came back or was put back from
// a backup; and what was left in order can be opened.
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
