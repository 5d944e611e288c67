// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

func mapOf() layout.Map {
	m := layout.NewMap(layout.Geometry{BlockSize: 1 << 20, Blocks: 1 << 20})
	m.Hosts = []layout.HostRecord{
		{Number: 1, UUID: uuid.UUID{1}, Name: "h1", State: layout.Recovered, Evidence: "operator:h1"},
		{Number: 2, UUID: uuid.UUID{2}, Name: "h2", State: layout.Fenced, Evidence: "operator:h2"},
		{Number: 3, UUID: uuid.UUID{1}, Name: "h1", State: layout.Member},
		{Number: 4, UUID: uuid.UUID{4}, Name: "h4", State: layout.Recovered, Evidence: "left"},
	}
	m.Volumes = []layout.VolumeRecord{{Number: 1, UUID: uuid.UUID{11}, Name: "vm1", Size: 512, State: layout.Offline, Generation: 1}}
	m.NextHost, m.NextVolume = 5, 2
	return m
}

func TestFinds(t *testing.T) {
	m := mapOf()
	for _, word := range []string{"vm1", uuid.UUID{11}.String()} {
		if v, err := Volume(m, word); err != nil || v.Number != 1 {
			t.Errorf("%s: %+v, %v", word, v, err)
		}
	}
	if _, err := Volume(m, "vm2"); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
	for _, word := range []string{"h1", uuid.UUID{1}.String()} {
		if h, err := Member(m, word); err != nil || h.Number != 3 {
			t.Errorf("%s: %+v, %v", word, h, err)
		}
	}
	for word, says := range map[string]string{"h2": "(operator:h2)", "h4": "no member of the cluster any more (left)"} {
		if h, err := Host(m, word); err != nil || h.Name != word {
			t.Errorf("%s: %+v, %v", word, h, err)
		}
		_, err := Member(m, word)
		if !errors.Is(err, failure.Precondition) || !strings.Contains(err.Error(), says) || !strings.Contains(failure.HintOf(err), "--rejoin "+word) {
			t.Errorf("%s: %v (%s)", word, err, failure.HintOf(err))
		}
	}
	if _, err := Member(m, "h9"); !errors.Is(err, failure.NotFound) || !strings.Contains(failure.HintOf(err), "init-host h9") {
		t.Errorf("%v (%s)", err, failure.HintOf(err))
	}
	if NameOf(m, 2) != "h2" || NameOf(m, 9) != "" {
		t.Error("names of hosts")
	}
}

func TestQuantum(t *testing.T) {
	m := mapOf() // 1 TiB, one member
	if got := Quantum(m); got != 1<<20/100 {
		t.Errorf("a hundredth: %d", got)
	}
	for range 20 {
		m.Hosts = append(m.Hosts, layout.HostRecord{State: layout.Member})
	}
	if got := Quantum(m); got != 1024 {
		t.Errorf("1 GiB: %d", got)
	}
	m.Blocks = 160
	if got := Quantum(m); got != 10 {
		t.Errorf("a sixteenth: %d", got)
	}
	m.Blocks = 2
	if got := Quantum(m); got != 1 {
		t.Errorf("one: %d", got)
	}
	if BlocksFor(m, 0) != 0 || BlocksFor(m, 1) != 1 || BlocksFor(m, 1<<20) != 1 || BlocksFor(m, 1<<20+1) != 2 {
		t.Error("blocks for bytes")
	}
}

func TestMap(t *testing.T) {
	d := New("san")
	d.Dir, d.Capacity = t.TempDir(), 64<<20
	g := d.Group(nil, "")
	if _, _, err := Map(t.Context(), g, d.UUID); !errors.Is(err, failure.NotFound) {
		t.Errorf("there is none yet: %v", err)
	}
	if err := g.Create(t.Context(), layout.MapName, 1<<20); err != nil {
		t.Fatal(err)
	}
	err := group.With(t.Context(), g, layout.MapName, true, func(v group.Volume) error {
		_, err := layout.CreateMap(v, d.UUID, 7, mapOf())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	m, stamp, err := Map(t.Context(), g, d.UUID)
	if err != nil || stamp.Epoch != 7 || len(m.Hosts) != 4 {
		t.Errorf("%+v, %v, %v", m, stamp, err)
	}
}
