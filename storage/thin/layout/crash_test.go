// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

var (
	cluster = uuid.MustParse("6f3a1a3e-6a0b-4e0c-9c0f-1b1c6f4f2a01")
	object  = uuid.MustParse("0c9fd3f1-94f0-4d6f-8d59-8a3f1f8f9b02")
)

var geometry = layout.Geometry{BlockSize: 64 << 10, Blocks: 1000}

// kept is a format under test, as states counted by an int.
type kept struct {
	size   int64
	create func(dev layout.Device, state int) error
	// commit writes state+1 over state.
	commit func(dev layout.Device, state int) error
	// read returns the state, or -1 if nothing was written yet.
	read func(dev layout.Device) (int, error)
}

// mapOf is a map whose length differs from state to state.
func mapOf(state int) layout.Map {
	m := layout.NewMap(geometry)
	m.NextVolume = uint32(state) + 2
	m.NextHost = 2
	m.Hosts = []layout.HostRecord{{Number: 1, UUID: object, Name: "one", State: layout.Member, Sequence: uint64(state)}}
	for i := range state * 7 % 40 {
		m.Give(extent.Of(extent.Extent{Start: uint64(10 + 3*i), Length: 1}), layout.Owner{Kind: layout.OfHost, Number: 1})
	}
	return m
}

func mappingOf(state int) layout.Mapping {
	m := layout.Mapping{Number: 7, BlockSize: 64 << 10, Size: 1 << 30}
	for i := range uint64(state * 101 % 400) {
		m.Runs = append(m.Runs, layout.MappingRun{Virtual: 2 * i, Physical: 1 + 3*i, Length: 1, Base: uint32(i % 3)})
	}
	return m
}

func hostOf(state int) layout.HostHeader {
	return layout.HostHeader{
		Geometry: geometry, Number: 1, Name: "one", Sequence: uint64(state), Active: state % 2,
		Windows: [2]layout.Window{{Offset: 1 << 20, Length: 1 << 20}, {Offset: 2 << 20, Length: 1 << 20}}, Journal: make([]byte, state*997%30_000),
	}
}

func none(err error) (int, error) {
	if errors.Is(err, layout.ErrEmpty) {
		return -1, nil
	}
	return 0, err
}

// current is the state that a read stamp names.
func current(stamp layout.Stamp) int { return int(stamp.Generation) - 1 }

func formats(t interface{ Fatalf(string, ...any) }) map[string]kept {
	same := func(what string, got, want any, opts ...cmp.Option) {
		if diff := cmp.Diff(want, got, opts...); diff != "" {
			t.Fatalf("%s: %s", what, diff)
		}
	}
	stamp := func(state int) layout.Stamp { return layout.Stamp{Epoch: 1, Generation: uint64(state) + 1} }
	return map[string]kept{
		"map": {
			size:   64 << 10,
			create: func(d layout.Device, s int) error { _, err := layout.CreateMap(d, cluster, 1, mapOf(s)); return err },
			commit: func(d layout.Device, s int) error {
				_, err := layout.CommitMap(d, cluster, stamp(s), 1, mapOf(s+1))
				return err
			},
			read: func(d layout.Device) (int, error) {
				m, at, err := layout.ReadMap(d, cluster)
				if err != nil {
					return none(err)
				}
				same("map", m, mapOf(current(at)))
				return current(at), nil
			},
		},
		"host": {
			size: 4 << 20,
			create: func(d layout.Device, s int) error {
				_, err := layout.CreateHost(d, cluster, object, 1, hostOf(s))
				return err
			},
			commit: func(d layout.Device, s int) error {
				_, err := layout.CommitHost(d, cluster, object, stamp(s), 1, hostOf(s+1))
				return err
			},
			read: func(d layout.Device) (int, error) {
				h, at, err := layout.ReadHost(d, cluster, object)
				if err != nil {
					return none(err)
				}
				same("host", h, hostOf(current(at)))
				return current(at), nil
			},
		},
		"label": {
			size:   1 << 20,
			create: func(d layout.Device, s int) error { return layout.CreateLabel(d, cluster, 1, grown(s)) },
			commit: func(d layout.Device, s int) error { return layout.GrowLabel(d, cluster, 1, grown(s+1)) },
			read: func(d layout.Device) (int, error) {
				g, err := layout.ReadLabel(d, cluster)
				if err != nil && !errors.Is(err, layout.ErrShrunk) {
					return none(err)
				}
				return int(g.Blocks) - 100, nil
			},
		},
	}
}

func grown(state int) layout.Geometry {
	return layout.Geometry{BlockSize: 64 << 10, Blocks: 100 + uint64(state)}
}

// Whenever the power goes, the old or the new state is read, and committing goes
// on from there.
func TestCommitUnderCrash(t *testing.T) {
	for name := range formats(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				f := formats(t)[name]
				disk := layouttest.New(name, f.size)
				state := -1
				for range rapid.IntRange(1, 12).Draw(t, "commits") {
					disk.Power = rapid.IntRange(-1, 6).Draw(t, "power")
					var err error
					if state < 0 {
						err = f.create(disk, 0)
					} else {
						err = f.commit(disk, state)
					}
					if err != nil && !errors.Is(err, layouttest.ErrPower) {
						t.Fatalf("commit after %d: %v", state, err)
					}
					old := state
					if err == nil {
						state++
						old = state // what succeeded stays
					} else {
						state++
					}
					disk.Boot(func() bool { return rapid.Bool().Draw(t, "arrived") }, rapid.IntRange(0, 30).Draw(t, "torn"))
					got, err := f.read(disk)
					if err != nil || got != old && got != state {
						t.Fatalf("read %d, %v; want %d or %d", got, err, old, state)
					}
					state = got
				}
			})
		})
	}
}

// Two crashes, one after the other, may each tear the first or the last sector that
// was written, and leave the others as they were: the old or the new state is read
// all the same.
func TestCommitTornTwice(t *testing.T) {
	for name, f := range formats(t) {
		t.Run(name, func(t *testing.T) {
			const powers, torn = 7, 2
			for n := range powers * torn * powers * torn {
				disk := layouttest.New(name, f.size)
				if err := f.create(disk, 0); err != nil {
					t.Fatal(err)
				}
				state := 0
				for _, crash := range []struct{ power, torn int }{
					{n % powers, 7 + n/powers%torn}, // of the 8 of a block the last, or the first
					{n / (powers * torn) % powers, 7 + n/(powers*torn*powers)},
				} {
					disk.Power = crash.power
					err := f.commit(disk, state)
					disk.Boot(func() bool { return false }, crash.torn)
					got, readErr := f.read(disk)
					if readErr != nil || got != state && got != state+1 || err == nil && got == state {
						t.Fatalf("crash %d: after %v it reads %d, %v; was %d", n, err, got, readErr, state)
					}
					state = got
				}
			}
		})
	}
}
