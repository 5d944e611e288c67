// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"testing"

	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// model is what a domain's owner believes: the bytes that the guest must see.
type model struct {
	*world
	onStop  string
	flat    []byte // of the source
	base    []byte // its lowest image
	others  int    // neighbours so far
	guest   []byte // nil: the guest has no data here, a start copies the source
	unsure  bool   // a discard was interrupted: the guest's data or the source, but nothing else
	running bool
	lost    bool // somebody deleted the copy
	away    bool // the shared storage is gone
}

// Whatever the order of starts, stops, crashes, reboots and verbs: a domain
// that starts sees what its guest wrote last, or the source if it never wrote;
// and what cannot be right is refused.
func TestAnyOrderOfEventsKeepsTheGuestsData(t *testing.T) {
	anyOrder(t, func() *world { return newWorld(t, "dir") }, nil)
}

// The same where copies are clones of a template, which other domains clone,
// and which may go at any time.
func TestAnyOrderOfEventsWithTemplatesKeepsTheGuestsData(t *testing.T) {
	anyOrder(t, func() *world { return newShared(t) }, map[string]func(*model, *rapid.T){
		"neighbour": (*model).neighbour, "evict": (*model).evict, "": (*model).checkTemplates,
	})
}

func anyOrder(t *testing.T, world func() *world, more map[string]func(*model, *rapid.T)) {
	if testing.Short() {
		must(t, flag.Set("rapid.checks", "3"))
	} else {
		must(t, flag.Set("rapid.checks", "12"))
	}
	must(t, flag.Set("rapid.steps", "15"))
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{world: world(), onStop: rapid.SampledFrom([]string{localdisk.Keep, localdisk.Discard}).Draw(rt, "on-stop")}
		var err error
		m.flat, err = os.ReadFile(m.world.flat)
		must(t, err)
		m.base, err = os.ReadFile(m.path("base.raw"))
		must(t, err)
		events := map[string]func(*rapid.T){
			"start":     m.start,
			"write":     m.write,
			"stop":      m.stop,
			"reboot":    m.powerCut,
			"storage":   m.storage,
			"lose copy": m.lose,
			"recreate":  m.recreate,
			"":          func(*rapid.T) {},
		}
		for name, event := range more {
			events[name] = func(rt *rapid.T) { event(m, rt) }
		}
		rt.Repeat(events)
	})
}

func (m *model) disk() localdisk.Disk {
	d := m.world.disk()
	d.OnStop = m.onStop
	return d
}

// failing sets a failpoint for one operation, or none.
func (m *model) failing(rt *rapid.T, points ...string) (point string, reset func()) {
	point = rapid.SampledFrom(append([]string{""}, points...)).Draw(rt, "fails at")
	if point != "" {
		must(m.t, os.Setenv("DISKHOOK_FAILPOINT", point+"=error"))
	}
	return point, func() { must(m.t, os.Unsetenv("DISKHOOK_FAILPOINT")) }
}

func (m *model) start(rt *rapid.T) {
	point, reset := m.failing(rt, "template.created", "template.filled", "template.read-only", "template.finished", "clone.made", "fill.created", "transfer.zeroed", "fill.receipt", "dir.claimed", "fill.finished", "fulfil.used", "fulfil.link")
	_, err := service().Fulfil(m.t.Context(), []localdisk.Disk{m.disk()}, localdisk.Waiting{})
	reset()
	switch {
	case err == nil && m.lost:
		rt.Fatal("a lost copy was replaced without a word")
	case err != nil && point == "" && !m.lost && !(m.away && (m.guest == nil || m.unsure)):
		rt.Fatalf("refused: %v", failure.Line(err))
	case err != nil:
		return
	}
	now, err := os.ReadFile(m.stable())
	must(m.t, err)
	switch want := m.guest; {
	case m.unsure && bytes.Equal(now, m.flat):
	case want != nil && bytes.Equal(now, want):
	case want == nil && bytes.Equal(now, m.flat):
	default:
		rt.Fatal("the guest sees other data")
	}
	m.guest, m.unsure, m.running = now, false, true
}

func (m *model) write(rt *rapid.T) {
	if !m.running {
		rt.Skip("not running")
	}
	sector := rapid.IntRange(0, len(m.guest)/512-1).Draw(rt, "sector")
	data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "byte")}, 512)
	f, err := os.OpenFile(m.stable(), os.O_RDWR, 0)
	must(m.t, err)
	_, err = f.WriteAt(data, int64(sector)*512)
	must(m.t, errors.Join(err, f.Close()))
	copy(m.guest[sector*512:], data)
}

func (m *model) stop(rt *rapid.T) {
	reason := rapid.SampledFrom([]string{"shutdown", "destroyed", "crashed", "saved", "failed", ""}).Draw(rt, "reason")
	point, reset := m.failing(rt, "discard.intent", "discard.removed", "discard.done")
	err := service().Release(m.t.Context(), domain, []localdisk.Disk{m.disk()}, reason)
	reset()
	discards := m.running && m.onStop == localdisk.Discard && (reason == "shutdown" || reason == "destroyed")
	switch {
	case !discards && err != nil:
		rt.Fatalf("release: %v", err)
	case discards && err == nil:
		m.guest, m.lost = nil, false
	case discards && point != "":
		m.unsure = true
	case discards:
		rt.Fatalf("discard: %v", err)
	}
	if err == nil || discards {
		m.running = false
	}
}

// powerCut takes /run away; no release is ever called.
func (m *model) powerCut(*rapid.T) {
	m.reboot()
	m.running = false
}

func (m *model) storage(*rapid.T) {
	for _, layer := range m.source {
		if m.away {
			must(m.t, os.Rename(layer.Path+".away", layer.Path))
		} else {
			must(m.t, os.Rename(layer.Path, layer.Path+".away"))
		}
	}
	m.away = !m.away
}

func (m *model) lose(rt *rapid.T) {
	if m.guest == nil || m.unsure || m.running || !m.ready() {
		rt.Skip("no copy with data")
	}
	must(m.t, os.Remove(m.content()))
	m.lost = true
}

func (m *model) recreate(rt *rapid.T) {
	if m.running {
		rt.Skip("running")
	}
	err := service().Recreate(m.t.Context(), m.disk(), localdisk.GiveUp{}, localdisk.Waiting{})
	if m.guest != nil && !m.unsure && err == nil {
		rt.Fatal("guest data was given up without a word")
	}
	if err := service().Remove(m.t.Context(), domain, "vda", localdisk.GiveUp{DiscardGuestData: true}); err != nil && !errors.Is(err, failure.NotFound) {
		rt.Fatalf("remove: %v", err)
	}
	m.guest, m.unsure, m.lost = nil, false, false
}

// neighbour starts another domain with the same source.
func (m *model) neighbour(rt *rapid.T) {
	if m.others++; m.others > 3 {
		rt.Skip("enough of them")
	}
	d := m.numbered(m.others)
	if _, err := service().Fulfil(m.t.Context(), []localdisk.Disk{d}, localdisk.Waiting{}); err != nil && m.away {
		return
	} else if err != nil {
		rt.Fatalf("neighbour: %v", failure.Line(err))
	}
	now, err := os.ReadFile(m.path("run/diskhook/disks/" + d.Domain + "/vda"))
	must(m.t, err)
	if !bytes.Equal(now, m.flat) {
		rt.Fatal("a neighbour sees other data")
	}
}

func (m *model) evict(rt *rapid.T) {
	for _, t := range m.templates() {
		if err := service().EvictTemplate(m.t.Context(), t.Name, localdisk.WipeNone); err != nil {
			rt.Fatalf("evict: %v", err)
		}
	}
}

// checkTemplates: what is ready has the content of the base.
func (m *model) checkTemplates(rt *rapid.T) {
	for _, t := range m.templates() {
		now, err := os.ReadFile(t.Path)
		must(m.t, err)
		if t.State == localdisk.Ready && !bytes.Equal(now, m.base) {
			rt.Fatalf("template %+v has other content", t)
		}
	}
}
