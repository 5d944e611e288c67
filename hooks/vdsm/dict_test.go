// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

func TestDictWith(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`{}`, `{"path": "/x", "format": "raw"}`},
		{`{ "a" : 1 }`, `{ "a" : 1 , "path": "/x", "format": "raw"}`},
		{`{"format":"cow","n":1e400,"path":"/old"}`, `{"format":"raw","n":1e400,"path":"/x"}`},
		{"{\n \"path\" : null ,\n \"z\":[1, {\"path\":\"inner\"}]\n}\n", "{\n \"path\" : \"/x\" ,\n \"z\":[1, {\"path\":\"inner\"}]\n, \"format\": \"raw\"}\n"},
	} {
		d, err := parseDict([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.with("path", "/x", "format", "raw")
		if err != nil || string(got) != c.want {
			t.Errorf("%s became %s (%v), want %s", c.text, got, err, c.want)
		}
	}
}

// FuzzDict: whatever is taken as an object means the same after a change, but
// for the key that was set.
func FuzzDict(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, ` {"path":"x","b":[{"path":1}]} `, `{"a":"\u0000","path":{}}`, `[]`, `{"a":1}x`, "{\"\xff\":1}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseDict(text)
		if err != nil {
			return
		}
		changed, err := d.with("path", "/x")
		if err != nil {
			t.Fatal(err)
		}
		var before, after map[string]json.RawMessage
		if err := json.Unmarshal(text, &before); err != nil {
			t.Fatalf("accepted %q: %v", text, err)
		}
		if err := json.Unmarshal(changed, &after); err != nil {
			t.Fatalf("%q became %q: %v", text, changed, err)
		}
		before["path"] = json.RawMessage(`"/x"`)
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%q became %q", text, changed)
		}
		if _, there := d.values["new"]; there {
			return
		}
		longer := d.withValue("new", json.RawMessage(`{"x":[1]}`))
		after = nil
		if err := json.Unmarshal(longer, &after); err != nil {
			t.Fatalf("%q became %q: %v", text, longer, err)
		}
		if string(after["new"]) != `{"x":[1]}` || len(after) != len(d.values)+1 || !bytes.HasPrefix(longer, text[:d.end]) {
			t.Errorf("%q became %q", text, longer)
		}
	})
}
