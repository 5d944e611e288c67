// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"errors"
	"fmt"
	"iter"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/invariant"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/metadata"
)

const (
	blocks    = 4000
	blockSize = 64 << 10
)

func id(n int) uuid.UUID { return uuid.UUID{0: byte(n), 15: 1} }

// must is for a step of the ledger that cannot fail here.
func must[T any](t *rapid.T) func(layout.Map, T, error) (layout.Map, T) {
	return func(m layout.Map, v T, err error) (layout.Map, T) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m, v
	}
}

// scattered maps every so many blocks of a volume to blocks of a set.
func scattered(t *rapid.T, from extent.Set, at uint64, base uint32) []layout.MappingRun {
	var runs []layout.MappingRun
	for _, e := range from {
		for start := e.Start; start < e.End(); {
			n := min(e.End()-start, rapid.Uint64Range(1, 40).Draw(t, "run"))
			runs = append(runs, layout.MappingRun{Virtual: at, Physical: start, Length: n, Base: base})
			at, start = at+n+rapid.Uint64Range(0, 3).Draw(t, "hole"), start+n
		}
	}
	return runs
}

// Metadata of two hosts that are composed from one map keep all rules, and say of
// each volume what its stored mapping said.
func TestComposeKeepsTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks})
		mappings := map[uint32]layout.Mapping{}
		attached := map[uint32][]handover.Attached{}
		coming := map[uint32][]layout.Mapping{}
		for i := range 2 {
			m, _ = must[uint32](t)(ledger.Join(m, id(i+1), fmt.Sprint("host", i)))
		}
		for i := range rapid.IntRange(1, 5).Draw(t, "volumes") {
			var number, copied, base uint32
			m, number = must[uint32](t)(ledger.Create(m, id(10+i), fmt.Sprint("v", i), blocks*4*blockSize))
			set := m.Owned(layout.Owner{Kind: layout.Free}).First(rapid.Uint64Range(2, 200).Draw(t, "base"))
			m.Give(set, layout.Owner{Kind: layout.OfVolume, Number: number})
			var err error
			if m, copied, base, err = ledger.Clone(m, number, id(20+i), fmt.Sprint("c", i)); err != nil {
				t.Fatal(err)
			}
			// Of the two, one has blocks of its own besides.
			own := m.Owned(layout.Owner{Kind: layout.Free}).First(rapid.Uint64Range(1, 100).Draw(t, "private"))
			m.Give(own, layout.Owner{Kind: layout.OfVolume, Number: copied})
			for _, n := range []uint32{number, copied} {
				mapping := layout.Mapping{Number: n, BlockSize: blockSize, Size: blocks * 4 * blockSize, Runs: scattered(t, set, 0, base)}
				if n == copied {
					mapping.Runs = append(mapping.Runs, scattered(t, own, 3*blocks, 0)...)
				}
				mappings[n] = mapping
				host := rapid.Uint32Range(0, 2).Draw(t, "host")
				if host == 0 {
					continue
				}
				if m, err = ledger.BeginAttach(m, n, host, mapping); err != nil {
					t.Fatal(err)
				}
				if rapid.Bool().Draw(t, "still coming") {
					coming[host] = append(coming[host], mapping)
					continue
				}
				if m, err = ledger.FinishAttach(m, n, host); err != nil {
					t.Fatal(err)
				}
				v := m.Volumes[len(m.Volumes)-2]
				if n == copied {
					v = m.Volumes[len(m.Volumes)-1]
				}
				attached[host] = append(attached[host], handover.Attached{Volume: v, Mapping: mapping})
			}
		}
		for host := uint32(1); host <= 2; host++ {
			m, _ = must[extent.Set](t)(ledger.Grant(m, host, rapid.Uint64Range(0, 300).Draw(t, "slack")))
		}
		cluster := invariant.Cluster{Map: m, Mappings: mappings, Images: map[uint32]invariant.Image{}}
		for host := uint32(1); host <= 2; host++ {
			r := written(t, m, host, attached[host], rapid.IntRange(0, len(attached[host])).Draw(t, "of them coming now"), coming[host])
			image, err := handover.Image(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			cluster.Images[host] = image
			for _, a := range attached[host] {
				got, err := handover.Mapping(r, m, a.Volume)
				if err != nil || got.Private().String() != a.Mapping.Private().String() || got.Blocks() != a.Mapping.Blocks() {
					t.Fatalf("%v, %v", err, got)
				}
				if diff := cmp.Diff(merged(a.Mapping), merged(got)); diff != "" {
					t.Fatal(diff)
				}
			}
		}
		if found := invariant.Check(cluster); found != nil {
			t.Fatal(found)
		}
	})
}

// merged has runs as long as can be.
func merged(m layout.Mapping) []layout.MappingRun {
	var runs []layout.MappingRun
	for _, r := range m.Runs {
		if i := len(runs) - 1; i >= 0 && runs[i].Base == r.Base && runs[i].Virtual+runs[i].Length == r.Virtual && runs[i].Physical+runs[i].Length == r.Physical {
			runs[i].Length += r.Length
			continue
		}
		runs = append(runs, r)
	}
	return runs
}

// written composes, writes and opens the metadata of a host, in no more room than
// they say they need. The first volumes, as many as now, are only coming. The others may
// be foreseen, some of them as they stay and some otherwise.
func written(t *rapid.T, m layout.Map, host uint32, attached []handover.Attached, now int, coming []layout.Mapping) *metadata.Reader {
	plan, err := handover.Compose(m, host, 7, attached[now:], coming...)
	if err == nil {
		plan, err = plan.Coming(attached[:now]...)
	}
	if err != nil {
		t.Fatal(err)
	}
	foreseen := rapid.Bool().Draw(t, "foreseen")
	size := plan.Content().PackedBlocks()
	if foreseen {
		size *= 2
	}
	disk := layouttest.New("window", int64(size)*4096)
	b, err := metadata.NewBuilder(disk, size, plan.Superblock())
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.WriteAhead(b); err != nil {
		t.Fatal(err)
	}
	if err := plan.VerifyAhead(func(id uint32) iter.Seq2[metadata.Run, error] { return b.Written(disk, id) }); err != nil {
		t.Fatal(err)
	}
	if foreseen {
		plan = foresee(t, plan, attached[now:], b, disk)
	}
	if err := plan.WriteAttached(b); err != nil {
		t.Fatal(err)
	}
	r, err := metadata.Open(disk)
	if err == nil {
		err = plan.Verify(r)
	}
	if err != nil || r.Superblock().TransactionID != 7 || r.Superblock().DataBlocks != blocks {
		t.Fatalf("%+v, %v", r, err)
	}
	report, err := metadata.Check(t.Context(), disk, size, metadata.CheckOptions{})
	if err != nil || len(report.Problems) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	return r
}

// foresee writes the volumes ahead, some of them without their last block, and takes
// back those and others.
func foresee(t *rapid.T, plan handover.Plan, attached []handover.Attached, b *metadata.Builder, disk *layouttest.Disk) handover.Plan {
	var same []uint32
	var anew, before []handover.Attached
	for _, a := range attached {
		if rapid.Bool().Draw(t, "stays as it is") {
			same = append(same, a.Volume.Number)
			before = append(before, a)
			continue
		}
		anew = append(anew, a)
		if n := len(a.Mapping.Runs); n > 0 && rapid.Bool().Draw(t, "grows") {
			a.Mapping.Runs = a.Mapping.Runs[:n-1]
		}
		before = append(before, a)
	}
	plan, err := plan.Foresee(before)
	if err == nil {
		err = plan.WriteForeseen(b)
	}
	if err == nil {
		err = plan.VerifyForeseen(func(id uint32) iter.Seq2[metadata.Run, error] { return b.Written(disk, id) })
	}
	if err == nil {
		plan, err = plan.With(anew, same...)
	}
	if err == nil {
		err = plan.Drop(func(id uint32) error { return b.Drop(disk, id) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// A volume that the map does not give the host is refused.
func TestComposeRefuses(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks})
	m, host, err := ledger.Join(m, id(1), "one")
	if err == nil {
		m, _, err = ledger.Grant(m, host, 10)
	}
	if err != nil {
		t.Fatal(err)
	}
	v := layout.VolumeRecord{Number: 1, Name: "v", Host: host, State: layout.Attached, Generation: 2}
	with := func(v layout.VolumeRecord, physical uint64, base uint32) handover.Attached {
		return handover.Attached{Volume: v, Mapping: layout.Mapping{Number: 1, Runs: []layout.MappingRun{{Physical: physical, Length: 1, Base: base}}}}
	}
	elsewhere, based := v, v
	elsewhere.Host, based.Bases = 9, []uint32{1}
	for name, attached := range map[string][]handover.Attached{
		"a block that is free":   {with(v, 500, 0)},
		"a block of no base":     {with(based, 5, 1)},
		"a volume of another":    {with(elsewhere, 5, 0)},
		"a volume that is twice": {with(v, 5, 0), with(v, 6, 0)},
	} {
		if _, err := handover.Compose(m, host, 1, attached); !errors.Is(err, failure.Problems) || failure.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	plan, err := handover.Compose(m, host, 1, []handover.Attached{with(v, 5, 0)})
	if err != nil {
		t.Fatal(err)
	}
	w := v
	w.Number = 2
	for name, coming := range map[string]handover.Attached{
		"a block that is free":      with(w, 500, 0),
		"a volume that is attached": with(v, 6, 0),
	} {
		if _, err := plan.Coming(coming); !errors.Is(err, failure.Problems) || failure.HintOf(err) == "" {
			t.Errorf("coming, %s: %v", name, err)
		}
	}
	if _, err := plan.With(nil, 1); !errors.Is(err, failure.Problems) {
		t.Errorf("one that is to stay as it was foreseen, and was not: %v", err)
	}
}

// What is read back otherwise than it was to be written is told, of volumes that are
// coming and of those that are attached.
func TestVerifyFindsDifferences(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks})
	m, host, err := ledger.Join(m, id(1), "one")
	if err == nil {
		m, _, err = ledger.Grant(m, host, 100)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := m.Owned(layout.Owner{Kind: layout.OfHost, Number: host})[0].Start
	with := func(number uint32, generation uint64, runs ...uint64) handover.Attached {
		a := handover.Attached{
			Volume:  layout.VolumeRecord{Number: number, Name: fmt.Sprint("v", number), Host: host, State: layout.Attached, Generation: generation},
			Mapping: layout.Mapping{Number: number},
		}
		for i, at := range runs {
			a.Mapping.Runs = append(a.Mapping.Runs, layout.MappingRun{Virtual: uint64(2 * i), Physical: start + at, Length: 1})
		}
		return a
	}
	plan := func(attached, coming handover.Attached) handover.Plan {
		p, err := handover.Compose(m, host, 7, []handover.Attached{attached})
		if err == nil {
			p, err = p.Coming(coming)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	attached, coming := with(5, 2, 3, 4, 5), with(4, 3, 7, 8, 9)
	disk := layouttest.New("window", 64*4096)
	b, err := metadata.NewBuilder(disk, 64, plan(attached, coming).Superblock())
	if err == nil {
		err = plan(attached, coming).Write(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := metadata.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		attached, coming handover.Attached
		ahead, whole     bool // is told
	}{
		{attached, coming, false, false},
		{with(5, 9, 3, 4, 5), coming, false, true},
		{with(5, 2, 3, 4), coming, false, true},
		{with(5, 2, 3, 4, 6), coming, false, true},
		{with(5, 2, 3, 4, 5, 6), coming, false, true},
		{attached, with(4, 9, 7, 8, 9), false, true},
		{attached, with(4, 3, 7, 8), true, true},
		{attached, with(4, 3, 7, 8, 10), true, false}, // read back ahead
		{attached, with(4, 3, 10, 8, 9), true, true},
		{attached, with(4, 3), true, true},
	} {
		p := plan(c.attached, c.coming)
		if err := p.VerifyAhead(r.Mappings); errors.Is(err, failure.Problems) != c.ahead {
			t.Errorf("%v, %v, ahead: %v", c.attached, c.coming, err)
		}
		if err := p.Verify(r); errors.Is(err, failure.Problems) != c.whole {
			t.Errorf("%v, %v: %v", c.attached, c.coming, err)
		}
	}
}
