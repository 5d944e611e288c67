// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

// What is refused, and that it leaves the map as it was.
func TestRefused(t *testing.T) {
	g := layout.Geometry{BlockSize: blockSize, Blocks: blocks}
	id := func(b byte) uuid.UUID { return uuid.UUID{0: b, 15: 1} }
	start := layout.NewMap(g)
	start, one, _ := ledger.Join(start, id(1), "one")
	start, two, _ := ledger.Join(start, id(2), "two")
	start, given, _ := ledger.Grant(start, one, 10)
	start, vol, _ := ledger.Create(start, id(3), "vol", blockSize)
	start, err := ledger.BeginAttach(start, vol, one, layout.Mapping{})
	if err == nil {
		start, err = ledger.FinishAttach(start, vol, one)
	}
	if err != nil || start.Check() != nil {
		t.Fatal(err, start.Check())
	}
	foreign := layout.Mapping{Number: vol, BlockSize: blockSize, Size: blockSize, Runs: []layout.MappingRun{{Physical: 40, Length: 1}}}
	for name, c := range map[string]struct {
		do   func(m layout.Map) (layout.Map, error)
		kind *failure.Kind
	}{
		"a host that is not there": {func(m layout.Map) (layout.Map, error) { m, _, err := ledger.Grant(m, 9, 1); return m, err }, failure.NotFound},
		"more than there is":       {func(m layout.Map) (layout.Map, error) { m, _, err := ledger.Grant(m, one, 50); return m, err }, failure.NoSpace},
		"a name that is taken":     {func(m layout.Map) (layout.Map, error) { m, _, err := ledger.Join(m, id(9), "one"); return m, err }, failure.Conflict},
		"blocks of another host":   {func(m layout.Map) (layout.Map, error) { return ledger.Return(m, two, given) }, failure.Problems},
		"attached elsewhere":       {func(m layout.Map) (layout.Map, error) { return ledger.BeginAttach(m, vol, two, layout.Mapping{}) }, failure.Conflict},
		"detached while in use": {func(m layout.Map) (layout.Map, error) {
			return ledger.FinishDetach(m, vol, one, layout.Mapping{}, false)
		}, failure.Conflict},
		"detached by another":  {func(m layout.Map) (layout.Map, error) { return ledger.BeginDetach(m, vol, two) }, failure.Conflict},
		"deleted while in use": {func(m layout.Map) (layout.Map, error) { return ledger.Delete(m, vol) }, failure.Conflict},
		"cloned offline while in use": {func(m layout.Map) (layout.Map, error) {
			m, _, _, err := ledger.Clone(m, vol, id(5), "x")
			return m, err
		}, failure.Conflict},
		"a clone's name": {func(m layout.Map) (layout.Map, error) {
			m, _, _, err := ledger.CloneAttached(m, vol, one, nil, id(5), "vol")
			return m, err
		}, failure.Conflict},
		"cloned blocks of nobody": {func(m layout.Map) (layout.Map, error) {
			m, _, _, err := ledger.CloneAttached(m, vol, one, extent.Of(extent.Extent{Start: 40, Length: 1}), id(5), "x")
			return m, err
		}, failure.Problems},
		"smaller":                        {func(m layout.Map) (layout.Map, error) { return ledger.Resize(m, vol, 512) }, failure.Usage},
		"fenced without evidence":        {func(m layout.Map) (layout.Map, error) { return ledger.Fence(m, one, "") }, failure.Precondition},
		"recovered without being fenced": {func(m layout.Map) (layout.Map, error) { return ledger.FinishRecovery(m, one) }, failure.Precondition},
		"grown without a host knowing": {func(m layout.Map) (layout.Map, error) {
			return ledger.Grow(m, 70, func(h uint32) bool { return h == one })
		}, failure.Precondition},
		"shrunk": {func(m layout.Map) (layout.Map, error) { return ledger.Grow(m, 50, func(uint32) bool { return true }) }, failure.Usage},
		"collected without every mapping": {func(m layout.Map) (layout.Map, error) {
			m.Volumes[0].Bases = []uint32{1}
			m, _, err := ledger.Collect(m, 1, nil)
			return m, err
		}, failure.Precondition},
		"a mapping of foreign blocks": {func(m layout.Map) (layout.Map, error) {
			m, err := ledger.BeginDetach(m, vol, one)
			if err != nil {
				return m, err
			}
			return ledger.FinishDetach(m, vol, one, foreign, false)
		}, failure.Problems},
		"recovered with volumes": {func(m layout.Map) (layout.Map, error) {
			m, err := ledger.Fence(m, one, "typed")
			if err != nil {
				return m, err
			}
			return ledger.FinishRecovery(m, one)
		}, failure.Conflict},
		"granted after being fenced": {func(m layout.Map) (layout.Map, error) {
			m, err := ledger.Fence(m, one, "typed")
			if err != nil {
				return m, err
			}
			m, _, err = ledger.Grant(m, one, 1)
			return m, err
		}, failure.Conflict},
		"no number left": {func(m layout.Map) (layout.Map, error) {
			m.NextVolume = layout.MaxVolume + 1
			m, _, err := ledger.Create(m, id(7), "last", 512)
			return m, err
		}, failure.NoSpace},
	} {
		t.Run(name, func(t *testing.T) {
			m := start
			m.Volumes, m.Hosts = slices.Clone(start.Volumes), slices.Clone(start.Hosts)
			before := m
			_, err := c.do(m)
			if failure.KindOf(err) != c.kind || failure.HintOf(err) == "" && c.kind != failure.Usage && name != "collected without every mapping" {
				t.Errorf("%v of kind %v, hint %q", err, failure.KindOf(err), failure.HintOf(err))
			}
			if diff := cmp.Diff(before.Owners, m.Owners); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A request that was done before its master died is told from a new one.
func TestAnswer(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks})
	m, h, err := ledger.Join(m, uuid.UUID{1}, "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		sequence uint64
		again    bool
		kind     *failure.Kind
		after    uint64
	}{{3, false, nil, 3}, {3, true, nil, 3}, {4, false, nil, 4}, {3, false, failure.Conflict, 4}} {
		before := m
		next, again, err := ledger.Answer(m, h, c.sequence)
		if again != c.again || failure.KindOf(err) != c.kind || next.Hosts[0].Sequence != c.after {
			t.Errorf("%d: %t, %v, %+v", c.sequence, again, err, next.Hosts[0])
		}
		if before.Hosts[0] != m.Hosts[0] {
			t.Error("it changed the map that it was given")
		}
		m = next
	}
}

func TestGrow(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks})
	m, h, err := ledger.Join(m, uuid.UUID{1}, "one")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if m, err = ledger.Grow(m, 100, func(n uint32) bool { return n == h }); err != nil || m.Check() != nil || m.Owned(layout.Owner{Kind: layout.Free}).Blocks() != 99 {
			t.Fatalf("%v, %v, %v", err, m.Check(), m.Owners)
		}
	}
}

// A refusal names what is in the way, and a way out that is not refused itself.
func TestWaysOut(t *testing.T) {
	m := layout.NewMap(layout.Geometry{BlockSize: blockSize, Blocks: blocks})
	m, one, _ := ledger.Join(m, uuid.UUID{1}, "one")
	m, vol, _ := ledger.Create(m, uuid.UUID{3}, "vol", blockSize)
	m, err := ledger.BeginAttach(m, vol, one, layout.Mapping{})
	if err != nil {
		t.Fatal(err)
	}
	fenced, err := ledger.Fence(m, one, "typed")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		do   func() error
		want string
	}{
		{func() error { _, err := ledger.Delete(m, vol); return err }, "volume vol: it is attaching, at host one: run `diskhook thin detach vol` on one;"},
		{func() error { _, err := ledger.Fence(m, one, ""); return err }, "`diskhook thin on-fenced one`"},
		{func() error { _, err := ledger.FinishRecovery(m, one); return err }, "`diskhook thin on-fenced one`"},
		{func() error { _, err := ledger.Forget(m, one); return err }, "`diskhook thin on-fenced one` and `diskhook thin recover one`"},
		{func() error { _, _, err := ledger.Grant(fenced, one, 1); return err }, "`diskhook thin init-host --rejoin one` on the master"},
		{func() error { _, _, err := ledger.Join(fenced, uuid.UUID{1}, "one"); return err }, "it is fenced, and has not been recovered: run `diskhook thin recover one`"},
		{func() error { _, _, err := ledger.Join(m, uuid.UUID{2}, "one"); return err }, "host one, a member of the cluster, has its name or UUID"},
	} {
		err := c.do()
		if err == nil || !strings.Contains(err.Error()+": "+failure.HintOf(err), c.want) {
			t.Errorf("%v (hint %q), want %q", err, failure.HintOf(err), c.want)
		}
	}
}
