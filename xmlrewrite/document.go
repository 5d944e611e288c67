// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// Limits on what Parse takes.
const (
	MaxSize       = 16 << 20 // bytes
	MaxDepth      = 256      // nested elements, as in libxml2
	maxNamespaces = 64       // declarations in scope at one element
	maxPieces     = 1 << 18  // disks, other children of <domain>, and the text between
)

// Why a document or an edit was refused; find them with errors.Is.
var (
	ErrTooLarge           = errors.New("XML too large")
	ErrTooDeep            = errors.New("XML nested too deeply")
	ErrDTD                = errors.New("XML with a document type declaration")
	ErrDuplicateAttribute = errors.New("XML with a duplicate attribute")
	ErrMalformed          = errors.New("malformed XML")
	ErrNotFound           = errors.New("not in the domain XML")
	ErrUnsupported        = errors.New("cannot be rewritten")
	ErrMetadata           = errors.New("metadata of diskhook is damaged")
	ErrQuorum             = errors.New("impossible quorum")
)

// Document is an XML text, cut at the elements that can be rewritten: the
// children of <domain>, and each disk below <devices>. An edit replaces one
// piece; all others stay the bytes that they were.
//
// Its methods that only read may run at the same time; edits may not.
type Document struct {
	root   string // local name of the root element, if it is in no namespace
	size   int
	quote  byte // the quote that the root's first attribute uses
	pieces []piece
}

type pieceKind uint8

const (
	textPiece  pieceKind = iota // anything between the others
	childPiece                  // a child of <domain>, except <devices>
	diskPiece                   // a disk, or a whole hot-plug snippet
	endPiece                    // the end tag of <domain> and what follows
)

// piece holds bytes that are never changed in place, so that documents can
// share them.
type piece struct {
	kind       pieceKind
	raw        []byte
	uri, local string       // childPiece: its name
	target     string       // diskPiece: target/@dev
	in         surroundings // what surrounds the element
}

// Bytes returns the text. Of a document that was not edited it is what Parse
// was given, byte for byte.
func (d *Document) Bytes() []byte {
	out := make([]byte, 0, d.size)
	for _, p := range d.pieces {
		out = append(out, p.raw...)
	}
	return out
}

// Clone returns a document that can be edited without changing d.
func (d *Document) Clone() *Document {
	c := *d
	c.pieces = slices.Clone(d.pieces)
	return &c
}

// Root returns the local name of the root element ("domain", "disk"), or "" if
// it is in a namespace.
func (d *Document) Root() string { return d.root }

// Name returns the domain's name, exactly as libvirt reads it, or "".
func (d *Document) Name() string { return d.childText("name") }

// UUID returns the domain's uuid in lower case with hyphens, or "". A text that
// is no uuid is returned as it is.
func (d *Document) UUID() string { return canonicalUUID(d.childText("uuid")) }

func (d *Document) childText(local string) string {
	for _, e := range d.Children("", local) {
		return textOf(e)
	}
	return ""
}

// Children returns copies of the domain's children of that name, <devices>
// excepted, for reading: changing them changes nothing. The namespace "" is
// libvirt's own elements.
func (d *Document) Children(uri, local string) []*etree.Element {
	var found []*etree.Element
	for _, p := range d.pieces {
		if p.kind == childPiece && p.uri == uri && p.local == local {
			found = append(found, readTree(p.raw, p.in, nil))
		}
	}
	return found
}

// findDisk returns the index of the piece of the one disk with that target.
func (d *Document) findDisk(target string) (int, error) {
	found := -1
	for i, p := range d.pieces {
		if p.kind != diskPiece || p.target != target || target == "" {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("disk %s: %w: two disks have this target", clip(target), ErrUnsupported)
		}
		found = i
	}
	if found < 0 {
		return 0, fmt.Errorf("disk %s: %w", clip(target), ErrNotFound)
	}
	return found, nil
}

// canonicalUUID accepts what libvirt accepts: 32 hexadecimal digits in either
// case, with hyphens anywhere between them and white space around.
func canonicalUUID(s string) string {
	s = strings.Trim(s, blank)
	hex := strings.ToLower(strings.ReplaceAll(s, "-", ""))
	if len(hex) != 32 || strings.Trim(hex, "0123456789abcdef") != "" {
		return s
	}
	return strings.Join([]string{hex[:8], hex[8:12], hex[12:16], hex[16:20], hex[20:]}, "-")
}
