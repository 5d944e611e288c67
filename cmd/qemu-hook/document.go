// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
)

// document is what qemu-hook knows of a domain's XML without parsing it.
type document struct {
	text   []byte // its first mostXML+1 bytes
	marked bool   // it has a mark somewhere, also beyond text
	uuid   string // as the first <uuid> element has it, or ""
}

// mostXML is the size of XML in bytes that diskhook takes.
const mostXML = 16 << 20

// marks are the namespace of our metadata, and the directory of the links that
// a disk may name without any. Their presence says no more than that diskhook
// must look.
var marks = [...]string{"urn:diskhook:1", "/run/diskhook/volumes/"}

// longest is the length of the longest mark.
const longest = len("/run/diskhook/volumes/")

func hasMark(text []byte) bool {
	for _, mark := range marks {
		if bytes.Contains(text, []byte(mark)) {
			return true
		}
	}
	return false
}

var stdin = os.Stdin

func (d document) tooLarge() bool { return len(d.text) > mostXML }

// readXML reads r to its end. What cannot be read is not there: the XML of a
// domain that is none of ours may be as broken as it likes.
func readXML(r io.Reader) document {
	var d document
	chunk := make([]byte, 64<<10)
	var overlap []byte // the end of what was dropped, where a mark may begin
	for {
		n, err := r.Read(chunk)
		part := chunk[:n]
		if room := mostXML + 1 - len(d.text); room > 0 {
			taken := min(room, n)
			d.text = append(d.text, part[:taken]...)
			part = part[taken:]
		}
		if len(part) > 0 && !d.marked {
			if overlap == nil {
				overlap = append(overlap, d.text[len(d.text)-longest:]...)
			}
			overlap = append(overlap, part...)
			d.marked = hasMark(overlap)
			overlap = append([]byte{}, overlap[len(overlap)-longest:]...)
		}
		if err != nil {
			break
		}
	}
	d.marked = d.marked || hasMark(d.text)
	if _, rest, found := bytes.Cut(d.text, []byte("<uuid>")); found {
		d.uuid = string(bytes.TrimSpace(rest[:min(len(rest), 64)]))
		if end := bytes.IndexByte(rest[:min(len(rest), 64)], '<'); end >= 0 {
			d.uuid = string(bytes.TrimSpace(rest[:end]))
		}
	}
	return d
}

// hasReceipts says whether the host has receipts for the domain. A directory
// that cannot be looked at counts as none: a domain without binding must start
// whatever is wrong with the state, and one with a binding is known by that.
func hasReceipts(uuid string) bool {
	id := canonical(uuid)
	if id == "" {
		return false
	}
	st, err := os.Stat(root() + "/var/lib/diskhook/receipts/" + id)
	return err == nil && st.IsDir()
}

// canonical is the UUID in lower case with dashes, or "" for anything else.
// libvirt also takes UUIDs without dashes, but prints them with.
func canonical(uuid string) string {
	if len(uuid) != 36 {
		return ""
	}
	id := []byte(uuid)
	for i, c := range id {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return ""
			}
		case c >= 'A' && c <= 'F':
			id[i] = c + 'a' - 'A'
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return ""
		}
	}
	return string(id)
}
