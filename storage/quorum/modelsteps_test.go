// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"fmt"
	"slices"

	"pgregory.net/rapid"
)

// lift is Service.raise, with power for so many marks; -1 is enough.
func (m *model) lift(from Origin, next uint64, with []string, clean bool, power int) bool {
	m.raise++
	m.known.Begun = max(m.known.Begun, next)
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
	m.known.Number, m.known.Raise, m.gen = g.Number, g.Raise, g
	return true
}

// liftRunning raises the generation on these while the set is open.
func (m *model) liftRunning(with []string) bool {
	power := rapid.IntRange(-1, len(with)).Draw(m.t, "power")
	if !m.lift(Origin{m.gen.Number, m.gen.Raise, false}, m.gen.Number+1, with, false, power) {
		m.close()
		return false
	}
	m.running = with
	return true
}

func (m *model) close() { m.running, m.behind = nil, nil }

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
	m.running, m.inOrder, m.equal = d.Open, false, !d.Unclean
	if d.Unclean {
		m.gate(d)
	}
}

// gate makes the replicas equal that are open, beside a guest that writes, as
// far as the majority decides; the power may fail meanwhile.
func (m *model) gate(d Decision) {
	power := rapid.IntRange(-1, m.acked).Draw(m.t, "gate")
	m.equal = true
	for w := range m.acked {
		if w == power {
			m.write()
			m.cut()
			return
		}
		if len(d.Open)-m.lacking(d.Open, w) < d.outvotes(m.set, len(d.Open)) {
			m.equal = false // a read of it fails
			continue
		}
		for _, id := range d.Open {
			m.disks[id].has |= 1 << w
		}
	}
	if !m.undecided(d.Open) {
		for _, id := range d.Open {
			m.disks[id].torn = false
		}
		return
	}
	m.equal = false
}

// undecided says that what was in flight has no majority.
func (m *model) undecided(ids []string) bool {
	torn := func(id string) bool { return m.disks[id].torn }
	return slices.ContainsFunc(ids, torn) && rapid.Bool().Draw(m.t, "undecided")
}

// agree makes all of these equal.
func (m *model) agree(ids []string) {
	for _, id := range ids {
		m.disks[id].has, m.disks[id].torn = m.all(), false
	}
}

// write reaches all replicas that are open but for those behind, and is
// acknowledged if these are enough.
func (m *model) write() {
	if len(m.running)-len(m.behind) < m.set.Threshold || m.running == nil || m.acked == mostWrites-1 {
		return
	}
	for _, id := range m.running {
		if !slices.Contains(m.behind, id) {
			m.disks[id].has |= 1 << m.acked
		}
	}
	m.acked++
}

// lag is a write that some replicas do not take, though a threshold of them
// does; then reports come of some of them, one by one.
func (m *model) lag() {
	spare := len(m.running) - m.set.Threshold - len(m.behind)
	if m.running == nil || spare < 1 {
		return
	}
	well := slices.DeleteFunc(slices.Clone(m.running), func(id string) bool { return slices.Contains(m.behind, id) })
	m.behind = append(m.behind, rapid.Permutation(well).Draw(m.t, "behind")[:rapid.IntRange(1, spare).Draw(m.t, "so many")]...)
	m.write()
	heard := rapid.IntRange(0, len(m.behind)).Draw(m.t, "heard")
	for _, id := range slices.Clone(m.behind)[:heard] {
		m.drop(id)
	}
}

// fail is a replica that does not take a write: the others get a new
// generation before the write is acknowledged. Its own mark may not take.
func (m *model) fail() {
	if m.running != nil {
		m.drop(rapid.SampledFrom(m.running).Draw(m.t, "bad"))
	}
}

func (m *model) drop(bad string) {
	if m.running == nil {
		return
	}
	other := func(id string) bool { return id == bad }
	rest := slices.DeleteFunc(slices.Clone(m.running), other)
	if len(rest) < m.set.Threshold {
		m.cut()
		return
	}
	was := map[string]bool{}
	for _, id := range rest {
		was[id], m.disks[id].torn = m.disks[id].torn, true // has the write, which nobody acknowledged yet
	}
	if !m.liftRunning(rest) {
		return
	}
	for _, id := range rest {
		m.disks[id].torn = was[id]
	}
	m.behind = slices.DeleteFunc(m.behind, other)
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
		m.disks[id].torn = rapid.Bool().Draw(m.t, "torn") || m.disks[id].torn
	}
	m.close()
}

// stop flushes, hears all reports, and marks clean as many as it gets to.
func (m *model) stop() {
	for _, id := range slices.Clone(m.behind) {
		m.drop(id)
	}
	if m.running == nil {
		return
	}
	power := rapid.IntRange(0, len(m.running)).Draw(m.t, "power")
	if !m.equal {
		power = 0
	}
	m.inOrder = power > 0
	for _, id := range m.running[:power] {
		m.disks[id].mark = &Mark{Set: m.set.UUID, Replica: id, Generation: m.gen, Clean: true}
	}
	m.close()
}

// toggle takes a replica that is not open away, or brings it back.
func (m *model) toggle() {
	id := rapid.SampledFrom(m.set.IDs()).Draw(m.t, "id")
	if !slices.Contains(m.running, id) {
		m.disks[id].there = !m.disks[id].there
	}
}

// rejoin brings a replica up to date with what a threshold of the others has,
// while the guest writes, and gives it its vote back. It fails where no
// threshold has something.
func (m *model) rejoin() {
	id := rapid.SampledFrom(m.set.IDs()).Draw(m.t, "id")
	disk := m.disks[id]
	if m.running == nil || !m.equal || slices.Contains(m.running, id) || !disk.there {
		return
	}
	m.unsync(id)
	for w := range m.acked {
		if len(m.running)-m.lacking(m.running, w) < m.set.Threshold {
			return
		}
	}
	disk.has, disk.torn = m.all(), false
	m.liftRunning(append(slices.Clone(m.running), id))
}

// resync is offline: what is stale, and who is outvoted, gets what the voters
// have, if they decide everything.
func (m *model) resync() {
	if m.running != nil {
		return
	}
	d := m.decide(m.known)
	m.safe(d)
	if d.tooFew(m.set) != nil {
		return
	}
	need := majority(m.set, len(d.Open))
	for w := range m.acked {
		switch lacking := m.lacking(d.Open, w); {
		case lacking >= need:
			m.t.Fatalf("%d of %v lack acknowledged write %d and outvote the others: %s", lacking, d.Open, w, m)
		case len(d.Open)-lacking < need:
			return
		}
	}
	if m.undecided(d.Open) {
		return
	}
	with := slices.Clone(d.Open)
	for _, l := range d.Left {
		if l.Stale {
			m.unsync(l.ID)
			with = append(with, l.ID)
		}
	}
	m.equalize(d, with, 3)
}

// believe is a resync from one replica, one that the operator knows is right.
func (m *model) believe() {
	source := rapid.SampledFrom(m.set.IDs()).Draw(m.t, "source")
	if disk := m.disks[source]; m.running != nil || !disk.there || disk.has != m.all() || disk.torn {
		return
	}
	d := m.decide(m.known)
	m.inOrder = false
	with := []string{source}
	for _, id := range m.set.IDs() {
		if id != source && m.disks[id].there {
			m.unsync(id)
			with = append(with, id)
		}
	}
	if len(with) >= m.set.Threshold {
		m.equalize(d, with, 2)
	}
}

func (m *model) unsync(id string) {
	mark := *m.disks[id].mark
	mark.Suspect, mark.Clean = Unsynced, false
	m.disks[id].mark, m.disks[id].torn = &mark, true
}

// equalize makes these equal and counts them in a new generation; it dies before
// that once in so many times.
func (m *model) equalize(d Decision, with []string, often int) {
	if rapid.IntRange(0, often).Draw(m.t, "dies") == 0 {
		return
	}
	m.agree(with)
	lifted := m.lift(d.Base, d.Next, with, true, rapid.IntRange(-1, len(with)).Draw(m.t, "power"))
	m.inOrder = m.inOrder || lifted
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
