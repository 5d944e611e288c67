// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/layout"
)

var someID = uuid.MustParse("5a1e0bd4-9f43-4d7c-8a51-51a6cf2e9d10")

// all has one request of each verb.
var all = []Request{
	Create{someID, "vol", 512}, Delete{1, 7}, Clone{1, someID, "copy"}, CloneAttached{2, someID, "copy"}, Resize{1, 1024},
	BeginAttach{3, true}, FinishAttach{3}, BeginDetach{3}, FinishDetach{3, true}, Grant{10, 5}, Return{Extents{1, 2, 9, 1}}, Room{0, 1 << 20}, Leave{},
}

func TestEachVerbComesBack(t *testing.T) {
	if len(all) != len(kinds) {
		t.Fatalf("%d requests, %d verbs", len(all), len(kinds))
	}
	seen := map[uint16]bool{}
	for _, r := range all {
		m, err := Encode(7, 3, r)
		if err != nil || m.Sequence != 7 || m.Epoch != 3 || seen[m.Code] || Name(r) == "" {
			t.Fatalf("%#v: %+v, %v", r, m, err)
		}
		seen[m.Code] = true
		back, err := Decode(m)
		if diff := cmp.Diff(r, back); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
}

// The numbers of verbs are on the disk.
func TestBytes(t *testing.T) {
	var lines []string
	for _, r := range all {
		m, err := Encode(1, 1, r)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%d %s", m.Code, m.Body))
	}
	id := someID.String()
	want := []string{
		`1 {"id":"` + id + `","name":"vol","size":512}`, `2 {"volume":1,"generation":7}`, `3 {"of":1,"id":"` + id + `","name":"copy"}`,
		`4 {"of":2,"id":"` + id + `","name":"copy"}`, `5 {"volume":1,"size":1024}`, `6 {"volume":3,"suspect":true}`, `7 {"volume":3}`,
		`8 {"volume":3}`, `9 {"volume":3,"suspect":true}`, `10 {"blocks":10,"least":5}`, `11 {"extents":[1,2,9,1]}`, `12 {"bytes":1048576}`, `13 {}`,
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
}

func TestRefused(t *testing.T) {
	many := make(Extents, 2*MaxExtents+2)
	for i := range many {
		many[i] = uint64(i + 1)
	}
	for _, r := range []Request{
		Create{uuid.Nil, "a", 512}, Create{someID, "-a", 512}, Create{someID, "a", 513}, Create{someID, "a", 0}, Create{someID, "a", 1 << 63},
		Delete{}, Delete{Volume: layout.MaxVolume + 1}, Delete{Volume: 1 << 24}, Clone{0, someID, "a"}, CloneAttached{1, someID, "a/b"}, Resize{1, 7}, Resize{0, 512},
		BeginAttach{}, FinishAttach{}, BeginDetach{}, FinishDetach{}, Grant{0, 0}, Grant{1, 2},
		Return{}, Return{Extents{1}}, Return{Extents{4, 2, 5, 1}}, Return{Extents{4, 0}}, Return{Extents{2, 1<<64 - 1}}, Return{many},
		Room{1, 0}, Room{0, MaxRoom + 1}, Room{1 << 24, 1},
	} {
		if _, err := Encode(1, 1, r); !errors.Is(err, failure.Usage) {
			t.Errorf("%#v: %v", r, err)
		}
	}
	for _, m := range []layout.Message{
		{Code: 0, Body: []byte(`{}`)}, {Code: 14, Body: []byte(`{}`)}, {Code: 2, Body: []byte(`{"volume":1,"force":true}`)},
		{Code: 2, Body: []byte(`{"volume":16777216}`)}, {Code: 2}, {Code: 13, Body: []byte(`{}{}`)}, {Code: 2, Body: []byte(`{"volume":-1}`)},
	} {
		if r, err := Decode(m); !errors.Is(err, failure.Usage) {
			t.Errorf("%d %s: %#v, %v", m.Code, m.Body, r, err)
		}
	}
}

// The largest set of blocks goes back in requests that all fit.
func TestReturns(t *testing.T) {
	var runs []extent.Extent
	for i := range uint64(3 * MaxExtents / 2) {
		runs = append(runs, extent.Extent{Start: 1<<40 - 1000000 + 3*i, Length: 2})
	}
	blocks := extent.Of(runs...)
	var back extent.Set
	for _, r := range Returns(blocks) {
		if _, err := Encode(1<<64-1, 1<<64-1, r); err != nil {
			t.Fatal(err)
		}
		back = back.Union(r.Extents.Set())
	}
	if diff := cmp.Diff(blocks, back); diff != "" {
		t.Error(diff)
	}
}

func TestReply(t *testing.T) {
	to := layout.Message{Sequence: 9, Epoch: 1}
	m := Answer(to, 4, Reply{Number: 5, Generation: 3, Blocks: 8}, nil)
	r, err := Result(m)
	if m.Sequence != 9 || m.Epoch != 4 || err != nil || r != (Reply{5, 3, 8}) {
		t.Errorf("%+v: %+v, %v", m, r, err)
	}
	for _, kind := range append(failure.Kinds(), nil) {
		said := errors.New("volume v: no")
		if kind != nil {
			said = failure.Hint(failure.Wrap(kind, said), "run `this`")
		}
		_, err := Result(Answer(to, 4, Reply{}, said))
		if failure.KindOf(err) != kind || !strings.Contains(err.Error(), "volume v: no") || kind != nil && failure.HintOf(err) != "run `this`" {
			t.Errorf("%v: %v of kind %v, hint %q", kind, err, failure.KindOf(err), failure.HintOf(err))
		}
	}
	long := failure.Hint(errors.New(strings.Repeat("\x01\"<é\n", 4000)), "%s", strings.Repeat("<&>", 2000))
	if m := Answer(to, 4, Reply{}, long); len(m.Body) > layout.MaxBody {
		t.Errorf("a refusal of %d bytes", len(m.Body))
	}
	for _, body := range []string{"", "{}", `{"message":""}`} {
		if _, err := Result(layout.Message{Code: 4, Body: []byte(body)}); !errors.Is(err, failure.Problems) {
			t.Errorf("%q: %v", body, err)
		}
	}
}

// Whatever lies in a slot is refused or means what it says.
func FuzzDecode(f *testing.F) {
	for _, r := range all {
		m, err := Encode(1, 1, r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Code, m.Body)
	}
	f.Add(uint16(0), []byte(`{"message":"no","hint":"run it"}`))
	f.Fuzz(func(t *testing.T, code uint16, body []byte) {
		if r, err := Decode(layout.Message{Code: code, Body: body}); err == nil {
			m, err := Encode(1, 1, r)
			if err != nil || m.Code != code {
				t.Fatalf("%#v: %v", r, err)
			}
		}
		if _, err := Result(layout.Message{Code: code, Body: body}); code != 0 && err == nil {
			t.Fatal("a refusal that is none")
		}
	})
}
