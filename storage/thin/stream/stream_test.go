// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/stream"
)

const blockSize = 64 << 10

var (
	cluster  = uuid.MustParse("6f1f1c1e-52b5-4c44-93ee-32f1b5f2f001")
	volume   = uuid.MustParse("2b0c9a52-8d4e-4a6d-9a55-0f3c3a9df002")
	geometry = layout.Geometry{BlockSize: blockSize, Blocks: 256}
	record   = layout.VolumeRecord{
		Number: 5, UUID: volume, Name: "vm1--data", Size: 10<<20 + 512, State: layout.Offline, Generation: 4, Bases: []uint32{3, 9},
	}
)

func mapping() layout.Mapping {
	return layout.Mapping{Number: 5, BlockSize: blockSize, Size: record.Size, Runs: []layout.MappingRun{
		{Virtual: 0, Physical: 100, Length: 16},
		{Virtual: 16, Physical: 40, Length: 8, Base: 3},
		{Virtual: 32, Physical: 7, Length: 1},
		{Virtual: 33, Physical: 60, Length: 2, Base: 9},
		{Virtual: 160, Physical: 200, Length: 1}, // the last, of which the volume has 512 bytes
	}}
}

func streamOf(t testing.TB, change ...func(*layout.VolumeRecord)) stream.Stream {
	t.Helper()
	v := record
	for _, c := range change {
		c(&v)
	}
	s, err := stream.Of(cluster, geometry, v, mapping())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t testing.TB, s stream.Stream, f stream.Format) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Write(&out, f); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The bytes stay: streams are kept, and read by other programs.
func TestGolden(t *testing.T) {
	for _, f := range []stream.Format{stream.Text, stream.JSON, stream.XML} {
		golden := filepath.Join("testdata", "volume."+string(f))
		got := write(t, streamOf(t), f)
		if os.Getenv("UPDATE_GOLDEN") != "" {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s:\n%s", f, diff)
		}
	}
}

func TestReadsWhatWasWritten(t *testing.T) {
	for name, s := range map[string]stream.Stream{
		"offline": streamOf(t),
		"suspect": streamOf(t, func(v *layout.VolumeRecord) { v.State = layout.Suspect }),
		"live":    streamOf(t, func(v *layout.VolumeRecord) { v.State, v.Host = layout.Attached, 1 }),
		"empty":   empty(t),
	} {
		for _, f := range []stream.Format{stream.Text, stream.JSON} {
			got, err := stream.Read(bytes.NewReader(write(t, s, f)))
			if err != nil {
				t.Fatalf("%s as %s: %v", name, f, err)
			}
			if diff := cmp.Diff(s, got); diff != "" {
				t.Errorf("%s as %s:\n%s", name, f, diff)
			}
		}
	}
	for state, want := range map[layout.VolumeState]stream.State{
		layout.Offline: stream.Offline, layout.Suspect: stream.Suspect,
		layout.Attaching: stream.Live, layout.Attached: stream.Live, layout.Detaching: stream.Live,
	} {
		if got := streamOf(t, func(v *layout.VolumeRecord) { v.State = state }).State; got != want {
			t.Errorf("state %d: %s, want %s", state, got, want)
		}
	}
}

func empty(t testing.TB) stream.Stream {
	m := mapping()
	m.Runs = nil
	s, err := stream.Of(cluster, geometry, record, m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A stream that is cut off anywhere, or has one byte changed, is refused.
func TestWhatIsNotWholeIsRefused(t *testing.T) {
	for _, f := range []stream.Format{stream.Text, stream.JSON} {
		whole := write(t, streamOf(t), f)
		end := len(bytes.TrimRight(whole, "\n"))
		if f == stream.Text {
			end = len(whole)
		}
		for n := range end {
			refused(t, whole[:n], "")
		}
		for i := range whole {
			for _, flip := range []byte{0x01, 0x04, 0x20, 0x80} {
				b := bytes.Clone(whole)
				b[i] ^= flip
				s, err := stream.Read(bytes.NewReader(b))
				if err == nil && f == stream.Text {
					t.Fatalf("byte %d of the text became %q", i, b[i])
				}
				// JSON has blanks that do not count, and letters in two cases.
				if err == nil && cmp.Diff(streamOf(t), s) != "" {
					t.Fatalf("byte %d of the JSON became %q, and another stream was read", i, b[i])
				}
				if err != nil && !errors.Is(err, stream.ErrStream) {
					t.Fatalf("byte %d: %v", i, err)
				}
			}
		}
	}
}

func refused(t *testing.T, b []byte, says string) {
	t.Helper()
	_, err := stream.Read(bytes.NewReader(b))
	if !errors.Is(err, stream.ErrStream) || !errors.Is(err, failure.Precondition) || failure.HintOf(err) == "" || !strings.Contains(err.Error(), says) {
		t.Errorf("%.300q: %v (%s), want %q", b, err, failure.HintOf(err), says)
	}
}

func TestWhatIsNoStreamIsRefused(t *testing.T) {
	text := string(write(t, streamOf(t), stream.Text))
	json := string(write(t, streamOf(t), stream.JSON))
	for says, b := range map[string]string{
		"begins with":                   "",
		`begins with "hello wo"`:        "hello world\n",
		"for thin_restore":              string(write(t, streamOf(t), stream.XML)),
		"VHD image":                     "conectix" + strings.Repeat("\x00", 504),
		"this diskhook knows":           strings.Replace(text, "stream 1", "stream 2", 1),
		"too long":                      strings.Replace(text, "vm1--data", strings.Repeat("x", 300), 1),
		"cluster is wanted":             strings.Replace(text, "cluster 6f", "cluster 6F", 1),
		"state is wanted":               strings.Replace(text, "state offline\n", "", 1),
		"runs are wanted":               strings.Replace(text, "runs\n", "run\n", 1),
		"is no run":                     strings.Replace(text, "0 100 16 private", "00 100 16 private", 1),
		"16 public\" is no run":         strings.Replace(text, "16 private", "16 public", 1),
		"base=0\" is no run":            strings.Replace(text, "base=3", "base=0", 1),
		"it ends with":                  strings.Replace(text, "40 8 base=3", "41 8 base=3", 1),
		"something follows its end":     text + "\n",
		"JSON: ":                        strings.Replace(json, `"name"`, `"nam"`, 1),
		"schema":                        strings.Replace(json, "stream/v1", "stream/v2", 1),
		"has {Runs:5":                   strings.Replace(json, `"physical": 40`, `"physical": 41`, 1),
		"{Runs:5 Blocks:28 CRC:00":      strings.Replace(json, `"crc32c": "`, `"crc32c": "00`, 1),
		"cluster \"\"":                  strings.Replace(json, cluster.String(), "", 1),
		"diskhook.thin-volume/v1":       `{"schema":"diskhook.thin-volume/v1"}`,
		"cannot unmarshal number -1":    strings.Replace(json, `"virtual": 0`, `"virtual": -1`, 1),
		"something follows its end\x00": json + "{}",
	} {
		refused(t, []byte(b), strings.TrimSuffix(says, "\x00"))
	}
	// Whole, and yet a contradiction: whoever wrote it summed up nonsense.
	for says, change := range map[string]func(*stream.Stream){
		"the name":    func(s *stream.Stream) { s.Name = "../x" },
		"generation":  func(s *stream.Stream) { s.Generation = 0 },
		"the state":   func(s *stream.Stream) { s.State = "gone" },
		"a UUID":      func(s *stream.Stream) { s.Volume = uuid.Nil },
		"data blocks": func(s *stream.Stream) { s.DataBlocks = 200 },
		"twice":       func(s *stream.Stream) { s.Mapping.Runs[1].Physical = 100 },
		"after block": func(s *stream.Stream) { s.Mapping.Runs[1].Virtual = 15 },
		"blocks of 1": func(s *stream.Stream) { s.Mapping.BlockSize = 1 },
		"number":      func(s *stream.Stream) { s.Mapping.Number = 1 << 24 },
		"5+1 of":      func(s *stream.Stream) { s.Mapping.Runs[4].Physical, s.DataBlocks = 255, 255 },
	} {
		s := streamOf(t)
		change(&s)
		for _, f := range []stream.Format{stream.Text, stream.JSON} {
			refused(t, write(t, s, f), says)
		}
	}
}

// mapNow is the cluster's map with the volume in it.
func mapNow() layout.Map {
	m := layout.NewMap(geometry)
	m.Volumes = []layout.VolumeRecord{record}
	give := func(o layout.Owner, set extent.Set) { m.Give(set, o) }
	give(layout.Owner{Kind: layout.OfVolume, Number: 5}, mapping().Private())
	give(layout.Owner{Kind: layout.OfBase, Number: 3}, extent.Of(extent.Extent{Start: 38, Length: 12}))
	give(layout.Owner{Kind: layout.OfBase, Number: 9}, mapping().Of(9))
	return m
}

func TestFits(t *testing.T) {
	live := streamOf(t, func(v *layout.VolumeRecord) { v.State = layout.Attached })
	for name, c := range map[string]struct {
		stream stream.Stream
		change func(*layout.Map)
		kind   *failure.Kind
		says   string
	}{
		"as it was":  {streamOf(t), func(*layout.Map) {}, nil, ""},
		"renamed":    {streamOf(t), func(m *layout.Map) { m.Volumes[0].Name = "other" }, nil, ""},
		"grown":      {streamOf(t), func(m *layout.Map) { m.Blocks = 300 }, nil, ""},
		"suspect":    {streamOf(t), func(m *layout.Map) { m.Volumes[0].State = layout.Suspect }, nil, ""},
		"live":       {live, func(*layout.Map) {}, failure.Conflict, "while a host wrote"},
		"attached":   {streamOf(t), func(m *layout.Map) { m.Volumes[0].State = layout.Attached }, failure.Conflict, "attached to a host now"},
		"moved":      {streamOf(t), func(m *layout.Map) { m.Volumes[0].Generation = 5 }, failure.Conflict, "generation 4, and the volume has 5"},
		"resized":    {streamOf(t), func(m *layout.Map) { m.Volumes[0].Size *= 2 }, failure.Conflict, "generation 4"},
		"renumbered": {streamOf(t), func(m *layout.Map) { m.Volumes[0].Number = 6 }, failure.Conflict, "generation 4"},
		"deleted":    {streamOf(t), func(m *layout.Map) { m.Volumes = nil }, failure.Conflict, "no volume " + volume.String()},
		"block size": {streamOf(t), func(m *layout.Map) { m.BlockSize *= 2 }, failure.Precondition, "the cluster has 256 of 131072"},
		"smaller":    {streamOf(t), func(m *layout.Map) { m.Blocks = 255 }, failure.Precondition, "256 data blocks"},
		"block given": {streamOf(t), func(m *layout.Map) {
			m.Give(extent.Of(extent.Extent{Start: 107, Length: 1}), layout.Owner{Kind: layout.Free})
		}, failure.Conflict, "1 of its blocks are not the volume's: 107+1"},
		"base released": {streamOf(t), func(m *layout.Map) {
			m.Give(extent.Of(extent.Extent{Start: 60, Length: 2}), layout.Owner{Kind: layout.OfBase, Number: 3})
		}, failure.Conflict, "2 of its blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			m := mapNow()
			c.change(&m)
			err := c.stream.Fits(cluster, m)
			if c.kind == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, stream.ErrFit) || failure.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) || !strings.Contains(failure.HintOf(err), "diskhook thin ") {
				t.Errorf("%v (%s), want %q", err, failure.HintOf(err), c.says)
			}
		})
	}
	if err := streamOf(t).Fits(volume, mapNow()); !errors.Is(err, stream.ErrFit) || !errors.Is(err, failure.Precondition) || !strings.Contains(failure.HintOf(err), "--from") {
		t.Errorf("another cluster: %v (%s)", err, failure.HintOf(err))
	}
}

func TestOfRefusesWhatIsNotTheVolumes(t *testing.T) {
	other := record
	other.Number = 6
	if _, err := stream.Of(cluster, geometry, other, mapping()); err == nil || !strings.Contains(err.Error(), "number 5") {
		t.Errorf("another's mapping: %v", err)
	}
	if _, err := stream.Of(cluster, layout.Geometry{BlockSize: blockSize, Blocks: 200}, record, mapping()); err == nil || !strings.Contains(err.Error(), "of 200 data blocks") {
		t.Errorf("blocks beyond the end: %v", err)
	}
}

// FuzzRead reads anything without a panic; what it takes for a stream is one that
// is written again as the same bytes, if it is text.
func FuzzRead(f *testing.F) {
	for _, form := range []stream.Format{stream.Text, stream.JSON} {
		for _, s := range []stream.Stream{streamOf(f), empty(f)} {
			f.Add(write(f, s, form))
		}
	}
	f.Add([]byte("diskhook-thin-stream 1\n"))
	f.Add([]byte(`{"runs":[{"virtual":18446744073709551615,"physical":1,"length":18446744073709551615}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := stream.Read(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, stream.ErrStream) {
				t.Fatal(err)
			}
			return
		}
		again := write(t, s, stream.Text)
		if b[0] != '{' && !bytes.Equal(b, again) {
			t.Fatalf("%q became %q", b, again)
		}
		if _, err := stream.Read(bytes.NewReader(again)); err != nil {
			t.Fatal(err)
		}
	})
}
