// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// EditDisk hands the disk with that target to change and writes back only what
// change altered: whatever it leaves alone keeps its bytes. The element's
// parent is made up; it holds the namespaces in scope, for the elements'
// NamespaceURI (attributes cannot be asked). An error (ErrNotFound,
// ErrUnsupported for an ambiguous target, ErrMalformed if the result would not
// be XML, or change's own) leaves the document as it was.
func (d *Document) EditDisk(target string, change func(*etree.Element) error) error {
	return d.editDisk(target, func(_ *edit, e *etree.Element) error { return change(e) })
}

func (d *Document) editDisk(target string, change func(*edit, *etree.Element) error) error {
	i, err := d.findDisk(target)
	if err != nil {
		return err
	}
	if err := d.edit(i, change); err != nil {
		return fmt.Errorf("disk %s: %w", clip(target), err)
	}
	return nil
}

// EditChild hands the first child of <domain> of that name to change, as
// EditDisk does. A missing one is created as the last child, declaring its
// namespace with the given prefix. <devices> cannot be had this way.
func (d *Document) EditChild(prefix, uri, local string, change func(*etree.Element) error) error {
	return d.editChild(prefix, uri, local, func(_ *edit, e *etree.Element) error { return change(e) })
}

func (d *Document) editChild(prefix, uri, local string, change func(*edit, *etree.Element) error) error {
	if i := d.findChild(uri, local); i >= 0 {
		return d.edit(i, change)
	}
	raw := "<" + local + "/>"
	if uri != "" {
		raw = fmt.Sprintf("<%[1]s:%[2]s xmlns:%[1]s=%[3]c%[4]s%[3]c/>", prefix, local, d.quote, attrEscapes.Replace(uri))
	}
	with := d.Clone()
	i, err := with.appendChild(piece{kind: childPiece, raw: []byte(raw), uri: uri, local: local, in: surroundings{depth: 1}})
	if err != nil {
		return err
	}
	if err := with.edit(i, change); err != nil {
		return err
	}
	*d = *with
	return nil
}

// findChild returns the index of the first child of <domain> of that name, or -1.
func (d *Document) findChild(uri, local string) int {
	return slices.IndexFunc(d.pieces, func(p piece) bool { return p.kind == childPiece && p.uri == uri && p.local == local })
}

// appendChild puts a new element before the end tag of <domain>.
func (d *Document) appendChild(p piece) (int, error) {
	end := len(d.pieces) - 1
	if d.root != "domain" || end < 1 || d.pieces[end].kind != endPiece || !bytes.HasPrefix(d.pieces[end].raw, []byte("</")) {
		return 0, fmt.Errorf("%w: no <domain> element with content", ErrUnsupported)
	}
	// The white space before the end tag indents the end tag: the new element
	// comes before it.
	last := d.pieces[end-1]
	tail := piece{raw: last.raw[len(bytes.TrimRight(last.raw, blank)):]}
	if last.kind != textPiece {
		tail.raw = nil
	}
	last.raw = last.raw[:len(last.raw)-len(tail.raw)]
	indent := piece{raw: []byte(d.indent(1))}
	d.pieces = slices.Replace(d.pieces, end-1, end, last, indent, p, tail)
	d.size += len(indent.raw) + len(p.raw)
	return end + 1, nil
}

// insertChildAfter puts a new element behind piece i, on a line of its own if
// the document has lines.
func (d *Document) insertChildAfter(i int, p piece) int {
	indent := piece{raw: []byte(d.indent(1))}
	d.pieces = slices.Insert(d.pieces, i+1, indent, p)
	d.size += len(indent.raw) + len(p.raw)
	return i + 2
}

// removePiece drops a child of <domain> and the white space before it.
func (d *Document) removePiece(i int) {
	d.size -= len(d.pieces[i].raw)
	d.pieces = slices.Delete(d.pieces, i, i+1)
	if i > 0 && d.pieces[i-1].kind == textPiece {
		before := &d.pieces[i-1]
		text := bytes.TrimRight(before.raw, blank)
		d.size -= len(before.raw) - len(text)
		before.raw = text
	}
}

// indent returns the line break and indentation of an element at that depth,
// in the manner of the first child of <domain>; "" if it is not on a line of
// its own.
func (d *Document) indent(depth int) string {
	for i := 1; i < len(d.pieces); i++ {
		if d.pieces[i].kind != childPiece {
			continue
		}
		before := d.pieces[i-1].raw
		space := before[len(bytes.TrimRight(before, blank)):]
		at := bytes.LastIndexByte(space, '\n')
		if d.pieces[i-1].kind != textPiece || at < 0 {
			return ""
		}
		unit, line := space[at+1:], "\n"
		if at > 0 && space[at-1] == '\r' {
			line = "\r\n"
		}
		return line + string(bytes.Repeat(unit, depth))
	}
	return ""
}

// parse turns new text into a node that will be written exactly so.
func (ed *edit) parse(raw []byte) (*etree.Element, error) {
	for _, err := range tokens(raw, surroundings{}) {
		if err != nil {
			return nil, err
		}
	}
	e := readTree(raw, surroundings{}, ed.known)
	e.Parent().RemoveChild(e)
	return e, nil
}

// space is new white space, written as it is.
func (ed *edit) space(s string) *etree.CharData {
	t := etree.NewText(s)
	ed.known[t] = origin{src: []byte(s), end: len(s), data: s}
	return t
}

// lead returns the white space before e, or nil.
func lead(e etree.Token) *etree.CharData {
	if i := e.Index(); i > 0 {
		if c := e.Parent().Child[i-1]; isSpace(c) {
			return c.(*etree.CharData)
		}
	}
	return nil
}

func isSpace(t etree.Token) bool {
	c, ok := t.(*etree.CharData)
	return ok && !c.IsCData() && strings.Trim(c.Data, blank) == ""
}

// remove takes e, if there is one, out together with the white space before
// it, and all white space if nothing else is left around.
func remove(e *etree.Element) {
	if e == nil {
		return
	}
	parent := e.Parent()
	if c := lead(e); c != nil {
		parent.RemoveChild(c)
	}
	parent.RemoveChild(e)
	trim(parent)
}

// trim leaves an element that has only white space left without any content.
func trim(e *etree.Element) {
	for _, c := range e.Child {
		if !isSpace(c) {
			return
		}
	}
	for len(e.Child) > 0 {
		e.RemoveChildAt(0)
	}
}

// replace puts e where old was.
func replace(old, e *etree.Element) {
	parent, i := old.Parent(), old.Index()
	parent.RemoveChildAt(i)
	parent.InsertChildAt(i, e)
}

// insertBefore and insertAfter put e beside a sibling, indented like it.
func (ed *edit) insertBefore(sibling, e *etree.Element) {
	parent, i := sibling.Parent(), sibling.Index()
	space := lead(sibling)
	parent.InsertChildAt(i, e)
	if space != nil {
		parent.InsertChildAt(i+1, ed.copySpace(space))
	}
}

func (ed *edit) insertAfter(sibling, e *etree.Element) {
	parent, i := sibling.Parent(), sibling.Index()
	space := lead(sibling)
	parent.InsertChildAt(i+1, e)
	if space != nil {
		parent.InsertChildAt(i+1, ed.copySpace(space))
	}
}

func (ed *edit) copySpace(c *etree.CharData) *etree.CharData {
	copied := etree.NewText(c.Data)
	ed.known[copied] = ed.known[c]
	return copied
}
