// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// origins remembers of every node of a tree how it was written, so that what
// an edit leaves alone is written the same way again.
type origins map[etree.Token]origin

// origin is the place of a node in its source, and its content at that time.
type origin struct {
	src []byte
	// An element is <start tag><content><end tag>: [start, opened), [opened,
	// closing), [closing, end). Other nodes use start and end alone.
	start, opened, closing, end int

	tag  string       // elements: the name with its prefix
	attr []etree.Attr // elements
	data string       // other nodes
}

// readTree turns a fragment that tokens accepted into a tree. Its parent is an
// element made up to hold the namespaces in scope, so that NamespaceURI works.
// If known is not nil, it learns where each node came from.
func readTree(src []byte, in surroundings, known origins) *etree.Element {
	parent := etree.NewElement("scope")
	for _, b := range in.scope {
		if b.prefix == "" {
			parent.CreateAttr("xmlns", b.uri)
		} else {
			parent.CreateAttr("xmlns:"+b.prefix, b.uri)
		}
	}
	top := parent
	for tok, err := range tokens(src, in) {
		if err != nil {
			break // impossible: every fragment was read before
		}
		switch tok.kind {
		case startToken:
			e := newElement(tok)
			parent.AddChild(e)
			parent = e
			if known != nil {
				known[e] = origin{src: src, start: tok.start, opened: tok.end, tag: e.FullTag(), attr: slices.Clone(e.Attr)}
			}
		case endToken:
			if known != nil {
				o := known[parent]
				o.closing, o.end = tok.start, tok.end
				known[parent] = o
			}
			parent = parent.Parent()
		default:
			leaf := newLeaf(tok)
			parent.AddChild(leaf)
			if known != nil {
				known[leaf] = origin{src: src, start: tok.start, end: tok.end, data: dataOf(leaf)}
			}
		}
	}
	for e := range top.ChildElementsSeq() {
		return e
	}
	return etree.NewElement("empty")
}

func newElement(tok token) *etree.Element {
	e := etree.NewElement("")
	e.Space, e.Tag = tok.name.Space, tok.name.Local
	// Not CreateAttr: it looks for an earlier one each time, which an element
	// of a million attributes would make us pay for.
	e.Attr = make([]etree.Attr, 0, len(tok.attrs))
	for _, a := range tok.attrs {
		e.Attr = append(e.Attr, etree.Attr{Space: a.Name.Space, Key: a.Name.Local, Value: a.Value})
	}
	return e
}

func newLeaf(tok token) etree.Token {
	switch tok.kind {
	case cdataToken:
		return etree.NewCData(string(tok.data))
	case commentToken:
		return etree.NewComment(string(tok.data))
	case instToken:
		return etree.NewProcInst(tok.name.Local, string(tok.data))
	}
	return etree.NewText(string(tok.data))
}

// dataOf returns the content of a node that is no element.
func dataOf(t etree.Token) string {
	switch t := t.(type) {
	case *etree.CharData:
		return t.Data
	case *etree.Comment:
		return t.Data
	case *etree.ProcInst:
		return t.Target + " " + t.Inst
	case *etree.Directive:
		return t.Data
	}
	return ""
}

// is tells whether e is the element local of the namespace uri, "" being
// libvirt's own. The prefix never matters.
func is(e *etree.Element, uri, local string) bool {
	if e.Tag != local || uri == "" && e.Space != "" {
		return false
	}
	return e.NamespaceURI() == uri
}

// child returns the first child element of that name, or nil. libvirt, too,
// reads the first one only.
func child(e *etree.Element, local string) *etree.Element {
	if e == nil {
		return nil
	}
	for c := range e.ChildElementsSeq() {
		if is(c, "", local) {
			return c
		}
	}
	return nil
}

// attr returns the value of an attribute in no namespace, or "". e may be nil.
func attr(e *etree.Element, key string) string {
	if e != nil {
		for _, a := range e.Attr {
			if a.Space == "" && a.Key == key {
				return a.Value
			}
		}
	}
	return ""
}

// textOf joins all text inside e, as XPath's string() does.
func textOf(e *etree.Element) string {
	var b strings.Builder
	var walk func(*etree.Element)
	walk = func(e *etree.Element) {
		for _, c := range e.Child {
			switch c := c.(type) {
			case *etree.CharData:
				b.WriteString(c.Data)
			case *etree.Element:
				walk(c)
			}
		}
	}
	walk(e)
	return b.String()
}
