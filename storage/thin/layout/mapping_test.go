// SPDX-License-Identifier: Apache-2.0

package layout_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/layout/layouttest"
)

// A mapping that the map does not name yet may be written again and again, by
// whoever tries, with crashes: the one that the map names stays.
func TestMappingStaysUntilTheMapNamesAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := layouttest.New("v.thin", 128<<10)
		if err := layout.CreateMapping(disk, cluster, object, 1, mappingOf(1)); err != nil {
			t.Fatal(err)
		}
		named, epoch := uint64(1), uint64(1)
		for range rapid.IntRange(1, 15).Draw(t, "writes") {
			epoch += rapid.Uint64Range(0, 1).Draw(t, "new master")
			disk.Power = rapid.IntRange(-1, 5).Draw(t, "power")
			// A retry finds other contents than the attempt before it.
			err := layout.WriteMapping(disk, cluster, object, named, named+1, epoch, mappingOf(int(named)+1))
			if err != nil && !errors.Is(err, layouttest.ErrPower) {
				t.Fatal(err)
			}
			disk.Boot(func() bool { return rapid.Bool().Draw(t, "arrived") }, rapid.IntRange(0, 30).Draw(t, "torn"))
			got, readErr := layout.ReadMapping(disk, cluster, object, named)
			if diff := cmp.Diff(mappingOf(int(named)), got, cmpopts.EquateEmpty()); readErr != nil || diff != "" {
				t.Fatalf("generation %d: %v %s", named, readErr, diff)
			}
			if err == nil && rapid.Bool().Draw(t, "the map names it") {
				named++
			}
		}
	})
}

func TestMappingSets(t *testing.T) {
	m := layout.Mapping{Number: 7, BlockSize: 64 << 10, Size: 64 << 20, Runs: []layout.MappingRun{
		{Virtual: 0, Physical: 100, Length: 5}, {Virtual: 5, Physical: 50, Length: 5, Base: 3}, {Virtual: 20, Physical: 105, Length: 1},
	}}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		got  extent.Set
		want string
	}{{"private", m.Private(), "100+6"}, {"base 3", m.Of(3), "50+5"}, {"base 4", m.Of(4), "none"}} {
		if c.got.String() != c.want {
			t.Errorf("%s: %v, want %s", c.what, c.got, c.want)
		}
	}
	if m.Blocks() != 11 {
		t.Errorf("%d blocks", m.Blocks())
	}
}

func TestMappingRules(t *testing.T) {
	for name, change := range map[string]func(m *layout.Mapping){
		"no number":                 func(m *layout.Mapping) { m.Number = 0 },
		"a number of 24 bits":       func(m *layout.Mapping) { m.Number = 1 << 24 },
		"a number that is a host's": func(m *layout.Mapping) { m.Number = layout.FirstLocal },
		"block size":                func(m *layout.Mapping) { m.BlockSize = 65000 },
		"no size":                   func(m *layout.Mapping) { m.Size = 0 },
		"beyond the end":            func(m *layout.Mapping) { m.Size = 512 },
		"descending":                func(m *layout.Mapping) { m.Runs[0].Virtual = 9 },
		"empty run":                 func(m *layout.Mapping) { m.Runs[0].Length = 0 },
		"the label":                 func(m *layout.Mapping) { m.Runs[0].Physical = 0 },
		"beyond 40 bits":            func(m *layout.Mapping) { m.Runs[0].Physical = 1 << 40 },
		"wraps":                     func(m *layout.Mapping) { m.Runs[0].Physical = 1<<64 - 1 },
		"mapped twice":              func(m *layout.Mapping) { m.Runs[0].Physical = m.Runs[1].Physical },
	} {
		t.Run(name, func(t *testing.T) {
			m := mappingOf(3)
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			change(&m)
			disk := layouttest.New("v.thin", 128<<10)
			if err := layout.CreateMapping(disk, cluster, object, 1, m); !errors.Is(err, layout.ErrInvalid) || disk.Writes != 0 {
				t.Errorf("%v after %d writes", err, disk.Writes)
			}
		})
	}
}

// The contents are those of the blocks that are mapped, byte by byte.
func TestContents(t *testing.T) {
	const size = 64 << 10
	data := make([]byte, 10*size)
	for i := range data {
		data[i] = byte(i/size<<4 | i%13)
	}
	m := layout.Mapping{Number: 1, BlockSize: size, Size: 6*size - 512, Runs: []layout.MappingRun{
		{Virtual: 1, Physical: 4, Length: 2}, {Virtual: 3, Physical: 2, Length: 1, Base: 9}, {Virtual: 5, Physical: 9, Length: 1},
	}}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, m.Size)
	for virtual, physical := range map[int]int{1: 4, 2: 5, 3: 2, 5: 9} {
		copy(want[virtual*size:], data[physical*size:][:size])
	}
	rapid.Check(t, func(t *rapid.T) {
		off := rapid.Int64Range(0, int64(m.Size)+100).Draw(t, "off")
		p := bytes.Repeat([]byte{0xee}, rapid.IntRange(0, 3*size).Draw(t, "length"))
		n, err := m.Contents(bytes.NewReader(data)).ReadAt(p, off)
		expected := want[min(off, int64(m.Size)):min(off+int64(len(p)), int64(m.Size))]
		if !bytes.Equal(p[:n], expected) || errors.Is(err, io.EOF) != (n < len(p)) {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	})
	if n, err := m.Contents(bytes.NewReader(data[:9*size])).ReadAt(make([]byte, 100), 5*size); n != 0 || err == nil {
		t.Errorf("data that is missing: %d, %v", n, err)
	}
}
