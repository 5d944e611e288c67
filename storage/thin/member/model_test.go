// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

// Whatever hosts and guests do, and wherever a program is killed or a host loses
// its power: after each step every rule holds, every volume has what its guest was
// told is there, and the same verb goes through when it is run again.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		m := &model{world: newWorld(t, fmt.Sprint(dir, "/", runs), 2)}
		for _, h := range m.hosts {
			h.start()
			h.request(8)
		}
		m.create(m.hosts[0])
		step := func(action func(*rapid.T)) func(*rapid.T) {
			return func(t *rapid.T) { m.tester = t; action(t) }
		}
		t.Repeat(map[string]func(*rapid.T){
			"":         step(func(*rapid.T) { m.check() }),
			"create":   step(m.make),
			"attach":   step(m.attach),
			"detach":   step(m.detach),
			"move":     step(m.move),
			"write":    step(m.write),
			"write ":   step(m.write),
			"discard":  step(m.erase),
			"request":  step(m.grow),
			"free":     step(m.free),
			"use":      step(m.use),
			"snapshot": step(m.share),
			"clone":    step(m.clone),
			"delete":   step(m.remove),
			"rebuild":  step(m.rebuild),
			"reboot":   step(m.reboot),
			"restart":  step(m.restart),
			"fence":    step(m.lose),
			"away":     step(func(*rapid.T) { m.away = !m.away }),
		})
	})
}

type model struct {
	*world
	picked  layout.VolumeRecord
	pending bool // a request had no answer when the verb began
}

func (m *model) host(t *rapid.T) *node { return rapid.SampledFrom(m.hosts).Draw(t, "host") }

// pick is a volume in one of some states, and its host.
func (m *model) pick(t *rapid.T, states ...layout.VolumeState) (layout.VolumeRecord, *node, bool) {
	now, _ := m.readMap()
	fit := slices.DeleteFunc(slices.Clone(now.Volumes), func(v layout.VolumeRecord) bool { return !slices.Contains(states, v.State) })
	if len(fit) == 0 {
		return layout.VolumeRecord{}, nil, false
	}
	v := rapid.SampledFrom(fit).Draw(t, "volume")
	m.picked = v
	for _, h := range m.hosts {
		if v.State.On() && m.number(now, h) == v.Host {
			return v, h, true
		}
	}
	return v, nil, true
}

// verb runs one, which may be killed; then the host may lose its power; then it is
// run again until it is through, unless the master is away or the cluster is full.
func (m *model) verb(t *rapid.T, h *node, do func() error) bool {
	m.pending = slices.ContainsFunc(m.hosts, func(h *node) bool { return len(m.header(h).Journal) != 0 })
	if rapid.IntRange(0, 2).Draw(t, "killed") == 0 {
		h.life.left = rapid.IntRange(0, 60).Draw(t, "steps")
		err := do()
		killed := h.life.left == 0
		h.life.left = -1
		if err == nil {
			return true
		}
		if !killed && !m.excused(err) {
			t.Fatalf("%v", err)
		}
		m.check()
		if rapid.Bool().Draw(t, "power lost") {
			h.boot()
		}
		if rapid.Bool().Draw(t, "forgotten") {
			h.start()
			return false
		}
		h.start()
	}
	err := do()
	if err != nil && !m.excused(err) {
		t.Fatalf("%v", err)
	}
	return err == nil
}

// excused is a failure that may be.
func (m *model) excused(err error) bool {
	if errors.Is(err, failure.NoSpace) || m.away && errors.Is(err, failure.Temporary) {
		return true
	}
	// What was asked for before, and answered only now, changed the volume.
	if !m.pending {
		return false
	}
	now, _ := m.readMap()
	same := slices.ContainsFunc(now.Volumes, func(v layout.VolumeRecord) bool {
		return v.Number == m.picked.Number && v.State == m.picked.State && v.Generation == m.picked.Generation
	})
	return !same && (errors.Is(err, failure.NotFound) || errors.Is(err, failure.Conflict) || errors.Is(err, failure.Precondition))
}

// open says whether a guest can use a volume on a host now.
func (m *model) open(h *node, v layout.VolumeRecord) bool {
	if h == nil {
		return false
	}
	info, err := h.kernel.Info(m.Context(), device(v.Name))
	return err == nil && !info.Suspended
}

func (m *model) make(t *rapid.T) {
	if now, _ := m.readMap(); len(now.Volumes) >= 6 {
		return
	}
	h := m.host(t)
	m.names++
	name, uuid := fmt.Sprint("v", m.names), id(1000+m.names)
	m.wrote[name] = map[uint64]uint32{}
	m.verb(t, h, func() error { return h.Create(m.Context(), uuid, name, perVolume*blockSize) })
}

func (m *model) attach(t *rapid.T) {
	v, _, ok := m.pick(t, layout.Offline)
	if !ok {
		return
	}
	h := m.host(t)
	if m.verb(t, h, func() error { _, err := h.Attach(m.Context(), v.Name, attachOptions); return err }) {
		h.reads(v.Name)
	}
}

func (m *model) detach(t *rapid.T) {
	if v, h, ok := m.pick(t, layout.Attached, layout.Attaching, layout.Detaching); ok {
		m.verb(t, h, func() error { return h.Detach(m.Context(), v.Name) })
	}
}

func (m *model) move(t *rapid.T) {
	v, h, ok := m.pick(t, layout.Attached)
	if !ok || !m.verb(t, h, func() error { return h.Detach(m.Context(), v.Name) }) {
		return
	}
	to := m.host(t)
	if m.verb(t, to, func() error { _, err := to.Attach(m.Context(), v.Name, attachOptions); return err }) {
		to.reads(v.Name)
	}
}

func (m *model) write(t *rapid.T) {
	v, h, ok := m.pick(t, layout.Attached)
	if !ok || !m.open(h, v) || h.status().Pool.Free() == 0 {
		return
	}
	h.write(v.Name, rapid.Uint64Range(0, perVolume-1).Draw(t, "block"))
}

func (m *model) erase(t *rapid.T) {
	if v, h, ok := m.pick(t, layout.Attached); ok && m.open(h, v) {
		h.discard(v.Name, rapid.Uint64Range(0, perVolume-1).Draw(t, "block"))
	}
}

func (m *model) grow(t *rapid.T) {
	h, n := m.host(t), rapid.Uint64Range(1, 8).Draw(t, "blocks")
	m.verb(t, h, func() error { _, err := h.Request(m.Context(), n); return err })
}

func (m *model) free(t *rapid.T) {
	h, n := m.host(t), rapid.Uint64Range(1, 8).Draw(t, "blocks")
	m.verb(t, h, func() error { _, err := h.Free(m.Context(), n); return err })
}

// use makes everything that is the host's free, or says how much only a rebuild does.
func (m *model) use(t *rapid.T) {
	h := m.host(t)
	m.verb(t, h, func() error {
		slack, err := h.Use(m.Context())
		if err == nil && !m.away {
			c := m.cluster()
			number := m.number(c.Map, h)
			parked := c.Map.Owned(layout.Owner{Kind: layout.OfHost, Number: number}).Intersect(c.Withheld(number))
			coming := m.coming(c.Map.Volumes, number)
			if parked.Blocks() > slack.Parked+coming {
				t.Fatalf("%v are withheld, %d of them by parked devices, %d of volumes to come", parked, slack.Parked, coming)
			}
		}
		return err
	})
}

// coming counts the blocks of volumes that a host has yet to take.
func (m *model) coming(volumes []layout.VolumeRecord, number uint32) uint64 {
	var n uint64
	for _, v := range volumes {
		if v.Host == number && v.State == layout.Attaching {
			n += m.mapping(v).Private().Blocks()
		}
	}
	return n
}

func (m *model) share(t *rapid.T) {
	v, h, ok := m.pick(t, layout.Attached)
	if now, _ := m.readMap(); !ok || len(now.Volumes) >= 6 {
		return
	}
	m.names++
	n := m.names
	m.verb(t, h, func() error { return h.snapshot(v.Name, n) })
}

func (m *model) clone(t *rapid.T) {
	v, _, ok := m.pick(t, layout.Offline)
	if now, _ := m.readMap(); !ok || len(now.Volumes) >= 6 {
		return
	}
	h := m.host(t)
	m.names++
	name, uuid := fmt.Sprint("c", m.names), id(3000+m.names)
	m.clones[name] = v.Name // it has what the volume has when the master makes it
	m.verb(t, h, func() error { return h.Clone(m.Context(), v.Name, uuid, name) })
}

func (m *model) remove(t *rapid.T) {
	if v, _, ok := m.pick(t, layout.Offline); ok {
		h := m.host(t)
		m.verb(t, h, func() error {
			if err := h.Delete(m.Context(), v.Name); !errors.Is(err, failure.NotFound) {
				return err
			}
			return nil // it was gone already
		})
	}
}

func (m *model) rebuild(t *rapid.T) {
	h := m.host(t)
	m.verb(t, h, func() error { return h.Rebuild(m.Context()) })
}

func (m *model) reboot(t *rapid.T) {
	h := m.host(t)
	h.boot()
	m.check()
	m.verb(t, h, func() error { return h.Start(m.Context()) })
	h.start()
}

func (m *model) restart(t *rapid.T) {
	h := m.host(t)
	m.verb(t, h, func() error { return h.Stop(m.Context()) })
	m.check()
	h.start()
}

// lose is a host that loses its power, perhaps in the middle of a verb, and is
// recovered by the master.
func (m *model) lose(t *rapid.T) {
	h := m.host(t)
	h.life.left = rapid.IntRange(0, 60).Draw(t, "steps")
	verb := rapid.SampledFrom(verbs).Draw(t, "verb")
	now, _ := m.readMap()
	switch {
	case verb.name != "snapshot":
		_ = verb.do(h) // of volumes that may not be there
	case len(now.Volumes) < 6 && m.wrote["v1"] != nil:
		m.names++
		_ = h.snapshot("v1", m.names)
	}
	h.life.left = -1
	h.fence()
	h.start()
	if !m.away {
		h.request(4)
	}
}
