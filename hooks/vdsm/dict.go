// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// dict is the JSON object with which VDSM describes a disk, or the host's
// capabilities. Its text is kept: a change replaces values where they stand.
type dict struct {
	text   []byte
	values map[string]value
	end    int // where the closing brace is
}

// value is the place of a top-level value in the text, and the value.
type value struct {
	start, end int
	json.RawMessage
}

func parseDict(text []byte) (dict, error) {
	d := dict{text: text, values: map[string]value{}}
	wrong := func(what string) error {
		return failure.New(failure.Usage, "not a JSON object: %s", what)
	}
	if !utf8.Valid(text) {
		return d, wrong("it is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return d, wrong("it does not begin with a brace")
	}
	for dec.More() {
		tok, err := dec.Token()
		key, isString := tok.(string)
		if err != nil || !isString {
			return d, wrong("a key is not a string")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return d, wrong(failure.OneLine(err.Error()))
		}
		if _, twice := d.values[key]; twice {
			return d, wrong("a key is there twice")
		}
		end := int(dec.InputOffset())
		d.values[key] = value{end - len(raw), end, raw}
	}
	if _, err := dec.Token(); err != nil {
		return d, wrong("it does not end")
	}
	d.end = int(dec.InputOffset()) - 1
	if _, err := dec.Token(); err != io.EOF {
		return d, wrong("something follows it")
	}
	return d, nil
}

// get returns a value as text: a string's content, "true" or "false", a
// number as it stands, and "" for anything else.
func (d dict) get(key string) string {
	raw := bytes.TrimSpace(d.values[key].RawMessage)
	var s string
	switch {
	case len(raw) == 0 || bytes.IndexByte([]byte("{[n"), raw[0]) >= 0:
		return ""
	case json.Unmarshal(raw, &s) == nil:
		return s
	}
	return string(raw)
}

// truth reads a flag, which VDSM writes as a boolean and Engine as a word.
func (d dict) truth(key string) bool {
	word := strings.ToLower(d.get(key))
	return word != "" && word != "false" && word != "0" && word != "none"
}

// with returns the text with string values set, given as key, value, key,
// value. Keys that are not there come last.
func (d dict) with(pairs ...string) ([]byte, error) {
	type change struct {
		value
		text []byte
	}
	var changes []change
	filled := len(d.values) > 0
	for i := 0; i < len(pairs); i += 2 {
		quoted, err := json.Marshal(pairs[i+1])
		if err != nil {
			return nil, err
		}
		at, there := d.values[pairs[i]]
		if !there {
			at = value{start: d.end, end: d.end}
			quoted = member(pairs[i], quoted, filled)
			filled = true
		}
		changes = append(changes, change{at, quoted})
	}
	slices.SortStableFunc(changes, func(a, b change) int { return a.start - b.start })
	var out []byte
	last := 0
	for _, c := range changes {
		out = append(append(out, d.text[last:c.start]...), c.text...)
		last = c.end
	}
	return append(out, d.text[last:]...), nil
}

// withValue returns the text with a key that is not there yet, last.
func (d dict) withValue(key string, value json.RawMessage) []byte {
	return slices.Concat(d.text[:d.end], member(key, value, len(d.values) > 0), d.text[d.end:])
}

// member is the text of one more member of an object; key is a plain word.
func member(key string, value []byte, follows bool) []byte {
	text := slices.Concat([]byte(`"`+key+`": `), value)
	if follows {
		return slices.Concat([]byte(", "), text)
	}
	return text
}

// formats are VDSM's own words for image formats.
var formats = map[string]string{"cow": "qcow2"}

// disk is the disk that the object describes.
func (d dict) disk() bindings.Disk {
	kind := cmp.Or(d.get("diskType"), "file") // VDSM of old does not tell
	x := &xmlrewrite.Disk{
		Target: d.get("name"), Serial: d.get("serial"), Device: d.get("device"), Type: kind,
		Driver:    xmlrewrite.Driver{Type: cmp.Or(formats[d.get("format")], d.get("format"))},
		ReadOnly:  d.truth("readonly"),
		Transient: d.get("shared") == "transient",
		Source:    xmlrewrite.Source{Type: kind, File: d.get("path"), Dev: d.get("path")},
	}
	told := xmlrewrite.VDSMDevice{
		PoolID: d.get("poolID"), DomainID: d.get("domainID"), ImageID: d.get("imageID"), VolumeID: d.get("volumeID"),
		GUID: d.get("GUID"), RBD: d.get("RBD"), Shared: d.get("shared"), Managed: d.truth("managed"),
	}
	return bindings.ReadDisk(x, true, told)
}
