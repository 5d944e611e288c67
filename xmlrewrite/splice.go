// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// writer writes a tree. Nodes whose origin is known and that are still what
// they were are copied from there; of a start tag with changed attributes only
// the changed values differ; all else is written anew in the document's style.
type writer struct {
	known origins
	quote byte
	out   []byte
}

func (w *writer) node(t etree.Token) {
	o, known := w.known[t]
	if e, ok := t.(*etree.Element); ok {
		if known && o.tag == e.FullTag() {
			w.oldElement(e, o)
		} else {
			w.newElement(e)
		}
		return
	}
	if known && o.data == dataOf(t) {
		w.out = append(w.out, o.src[o.start:o.end]...)
		return
	}
	switch t := t.(type) {
	case *etree.CharData:
		if t.IsCData() {
			w.text("<![CDATA[", t.Data, "]]>")
		} else {
			w.text(textEscapes.Replace(t.Data))
		}
	case *etree.Comment:
		w.text("<!--", t.Data, "-->")
	case *etree.ProcInst:
		w.text("<?", t.Target, " ", t.Inst, "?>")
	case *etree.Directive:
		w.text("<!", t.Data, ">")
	}
}

func (w *writer) newElement(e *etree.Element) {
	w.text("<", e.FullTag())
	for _, a := range e.Attr {
		w.attr(a.FullKey(), a.Value)
	}
	if len(e.Child) == 0 {
		w.text("/>")
		return
	}
	w.text(">")
	for _, c := range e.Child {
		w.node(c)
	}
	w.text("</", e.FullTag(), ">")
}

func (w *writer) oldElement(e *etree.Element, o origin) {
	if slices.EqualFunc(e.Attr, o.attr, sameAttr) {
		w.out = append(w.out, o.src[o.start:o.opened]...)
	} else {
		w.startTag(e, o)
	}
	had, has := o.opened < o.closing, len(e.Child) > 0
	if had && !has {
		w.out = append(w.out[:len(w.out)-1], "/>"...)
		return
	}
	closed := o.opened == o.end // <x/>, which has no end tag, as <x></x> has
	if closed && has {
		w.out = append(bytes.TrimRight(bytes.TrimSuffix(w.out, []byte("/>")), blank), '>')
	}
	for _, c := range e.Child {
		w.node(c)
	}
	if closed && has {
		w.text("</", o.tag, ">")
	} else {
		w.out = append(w.out, o.src[o.closing:o.end]...)
	}
}

// startTag writes a known start tag with e's attributes: those that stay keep
// their spelling, a new value takes the old one's quotes.
func (w *writer) startTag(e *etree.Element, o origin) {
	tag := o.src[o.start:o.opened]
	rest := 1 + len(o.tag) // what follows the last attribute
	type written struct {
		attrSpan
		text string
	}
	old, i := make(map[string]written, len(o.attr)), 0
	for at := range attrSpans(tag) {
		old[o.attr[i].FullKey()] = written{at, o.attr[i].Value}
		rest = at.end + 1
		i++
	}
	w.out = append(w.out, tag[:1+len(o.tag)]...)
	for _, a := range e.Attr {
		at, found := old[a.FullKey()]
		switch {
		case !found:
			w.attr(a.FullKey(), a.Value)
		case at.text == a.Value:
			w.out = append(w.out, tag[at.lead:at.end+1]...)
		default:
			w.out = append(w.out, tag[at.lead:at.value]...)
			w.text(attrEscapes.Replace(a.Value), string(tag[at.end]))
		}
	}
	w.out = append(w.out, tag[rest:]...)
}

// attr writes a new attribute.
func (w *writer) attr(name, value string) {
	w.text(" ", name, "=", string(w.quote), attrEscapes.Replace(value), string(w.quote))
}

func (w *writer) text(parts ...string) {
	for _, p := range parts {
		w.out = append(w.out, p...)
	}
}

func sameAttr(a, b etree.Attr) bool {
	return a.Space == b.Space && a.Key == b.Key && a.Value == b.Value
}

// White space in an attribute must be a reference: written as such, the next
// reader makes it a space. Both quotes are escaped, as libvirt does.
var (
	textEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#13;")
	attrEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;",
		"\t", "&#9;", "\n", "&#10;", "\r", "&#13;")
)

// edit is one change of one element. It lasts as long as the function it is
// handed to.
type edit struct{ known origins }

// edit runs change on a tree of piece i and puts the result in its place, if
// it is well-formed. On an error the document stays as it was.
func (d *Document) edit(i int, change func(*edit, *etree.Element) error) error {
	p := d.pieces[i]
	ed := &edit{origins{}}
	e := readTree(p.raw, p.in, ed.known)
	uri, local := e.NamespaceURI(), e.Tag
	if err := change(ed, e); err != nil {
		return err
	}
	w := &writer{known: ed.known, quote: d.quote, out: make([]byte, 0, len(p.raw)+256)}
	w.node(e)
	if bytes.Equal(w.out, p.raw) {
		return nil
	}
	for _, err := range tokens(w.out, p.in) {
		if err != nil {
			return fmt.Errorf("after the change: %w", err)
		}
	}
	if e.Tag != local || e.NamespaceURI() != uri {
		return fmt.Errorf("after the change: %w: <%s> became another element", ErrUnsupported, clip(local))
	}
	if p.kind == diskPiece {
		p.target = attr(child(e, "target"), "dev")
	}
	if d.size += len(w.out) - len(p.raw); d.size > MaxSize {
		d.size -= len(w.out) - len(p.raw)
		return fmt.Errorf("after the change: %w", ErrTooLarge)
	}
	p.raw = w.out
	d.pieces[i] = p
	return nil
}
