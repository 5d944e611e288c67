// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

type tokenKind uint8

const (
	startToken tokenKind = iota
	endToken
	textToken
	cdataToken
	commentToken
	instToken
)

// token is one piece of markup with its place: src[start:end] is exactly how
// it was written. An empty element <x/> gives a start token and an end token
// of no width.
type token struct {
	kind       tokenKind
	start, end int
	depth      int        // open elements around this one
	name       xml.Name   // elements: prefix and local name as written; instructions: target in Local
	uri        string     // elements: namespace, "" for none, unbound for an undeclared prefix
	attrs      []xml.Attr // start tokens; names as written, values as libxml2 reads them
	data       []byte     // other tokens; valid until the next token
	scope      []binding  // start tokens: namespaces around the element; valid until the next token
}

// binding gives a prefix ("" is the default namespace) its namespace.
type binding struct{ prefix, uri string }

// unbound stands for the namespace of a prefix that nobody declared. libvirt
// warns of those and goes on, and so do we; it equals no real namespace.
const unbound = "?"

// surroundings are what a fragment inherits from the document around it.
type surroundings struct {
	depth int
	scope []binding
}

// tokens reads src strictly: whatever libxml2 would refuse ends the sequence
// with an error, and so does what only an attacker writes (see the sentinels).
// encoding/xml does the reading; this adds the rules that it leaves out.
func tokens(src []byte, in surroundings) iter.Seq2[token, error] {
	return func(yield func(token, error) bool) {
		s := scanner{src: src, depth: in.depth, scope: append([]binding(nil), in.scope...)}
		if err := s.checkCharacters(); err != nil {
			yield(token{}, err)
			return
		}
		dec := xml.NewDecoder(bytes.NewReader(src))
		dec.CharsetReader = func(string, io.Reader) (io.Reader, error) { return nil, errEncoding }
		for {
			start := int(dec.InputOffset())
			raw, err := dec.RawToken()
			if errors.Is(err, io.EOF) {
				if err := s.checkEnd(); err != nil {
					yield(token{}, err)
				}
				return
			}
			var tok token
			if err == nil {
				tok, err = s.token(raw, start, int(dec.InputOffset()))
			} else {
				err = s.syntax(int(dec.InputOffset()), err)
			}
			if !yield(tok, err) || err != nil {
				return
			}
		}
	}
}

type scanner struct {
	src   []byte
	depth int
	open  []openElement // the elements around the current position, outermost first
	scope []binding
	ended bool // the root element was closed
}

type openElement struct {
	name     xml.Name
	uri      string
	bindings int // length of scope outside the element
	start    int
}

func (s *scanner) token(raw xml.Token, start, end int) (token, error) {
	tok := token{start: start, end: end, depth: s.depth}
	written := s.src[start:end]
	switch raw := raw.(type) {
	case xml.StartElement:
		tok.kind, tok.name, tok.attrs = startToken, raw.Name, raw.Attr
		return tok, s.startElement(&tok, written)
	case xml.EndElement:
		tok.kind, tok.name = endToken, raw.Name
		return tok, s.endElement(&tok)
	case xml.CharData:
		tok.kind, tok.data = textToken, raw
		if bytes.HasPrefix(written, []byte("<![CDATA[")) {
			tok.kind = cdataToken
		} else if hasSurrogateReference(written) {
			return tok, s.errorf(ErrMalformed, start, "a character reference names no character")
		}
		if len(s.open) == 0 && len(bytes.Trim(written, " \t\r\n")) > 0 {
			return tok, s.errorf(ErrMalformed, start, "text outside the root element")
		}
	case xml.Comment:
		tok.kind, tok.data = commentToken, raw
	case xml.ProcInst:
		tok.kind, tok.name.Local, tok.data = instToken, raw.Target, raw.Inst
		if strings.EqualFold(raw.Target, "xml") {
			return tok, s.checkDeclaration(start, written)
		}
	case xml.Directive:
		return tok, s.errorf(ErrDTD, start, "")
	}
	return tok, nil
}

func (s *scanner) startElement(tok *token, written []byte) error {
	if s.ended {
		return s.errorf(ErrMalformed, tok.start, "a second root element")
	}
	if s.depth >= MaxDepth {
		return s.errorf(ErrTooDeep, tok.start, fmt.Sprintf("more than %d levels", MaxDepth))
	}
	i := 0
	for at := range attrSpans(written) {
		if at.lead == at.name {
			return s.errorf(ErrMalformed, tok.start, "no white space between attributes")
		}
		value := written[at.value:at.end]
		if hasSurrogateReference(value) {
			return s.errorf(ErrMalformed, tok.start, "a character reference names no character")
		}
		if bytes.ContainsAny(value, "\t\r\n") {
			tok.attrs[i].Value = normalizeAttr(written[at.value-1 : at.end+1])
		}
		i++
	}
	outer := len(s.scope)
	for _, a := range tok.attrs {
		switch {
		case a.Name.Space == "xmlns":
			s.scope = append(s.scope, binding{a.Name.Local, a.Value})
		case a.Name.Space == "" && a.Name.Local == "xmlns":
			s.scope = append(s.scope, binding{"", a.Value})
		}
	}
	if len(s.scope) > maxNamespaces {
		return s.errorf(ErrMalformed, tok.start, fmt.Sprintf("more than %d namespaces in scope", maxNamespaces))
	}
	if name, twice := s.duplicate(tok.attrs); twice {
		return s.errorf(ErrDuplicateAttribute, tok.start, clip(name))
	}
	tok.uri, tok.scope = s.resolve(tok.name.Space), s.scope[:outer]
	s.open = append(s.open, openElement{tok.name, tok.uri, outer, tok.start})
	s.depth++
	return nil
}

func (s *scanner) endElement(tok *token) error {
	if len(s.open) == 0 {
		return s.errorf(ErrMalformed, tok.start, "an end tag without its start tag: "+clip(tok.name.Local))
	}
	last := s.open[len(s.open)-1]
	if last.name != tok.name {
		return s.errorf(ErrMalformed, tok.start, fmt.Sprintf("element %s, opened in line %d, is not closed before </%s>",
			clip(last.name.Local), s.line(last.start), clip(tok.name.Local)))
	}
	s.open = s.open[:len(s.open)-1]
	s.scope = s.scope[:last.bindings]
	s.depth--
	tok.uri, tok.depth = last.uri, s.depth
	s.ended = len(s.open) == 0
	return nil
}

func (s *scanner) checkEnd() error {
	switch {
	case len(s.open) > 0:
		last := s.open[len(s.open)-1]
		return s.errorf(ErrMalformed, len(s.src), fmt.Sprintf("the text ends inside element %s, opened in line %d", clip(last.name.Local), s.line(last.start)))
	case !s.ended:
		return s.errorf(ErrMalformed, len(s.src), "no element")
	}
	return nil
}

var errEncoding = errors.New("declared encoding is not UTF-8")

func (s *scanner) syntax(offset int, err error) error {
	var syntax *xml.SyntaxError
	switch {
	case errors.Is(err, errEncoding):
		return s.errorf(ErrMalformed, offset, errEncoding.Error())
	case errors.As(err, &syntax):
		if name, value, found := unquoted(s.src, min(offset, len(s.src))); found {
			return s.errorf(ErrMalformed, offset, fmt.Sprintf("%s=%s has no quotes: write %[1]s='%[2]s'", clip(name), clip(value)))
		}
		return s.errorf(ErrMalformed, offset, clip(syntax.Msg))
	}
	return s.errorf(ErrMalformed, offset, clip(err.Error()))
}

func (s *scanner) errorf(kind error, offset int, detail string) error {
	line := s.line(offset)
	if detail == "" {
		return fmt.Errorf("%w: line %d", kind, line)
	}
	return fmt.Errorf("%w: line %d: %s", kind, line, detail)
}

func (s *scanner) line(offset int) int {
	return 1 + bytes.Count(s.src[:min(offset, len(s.src))], []byte("\n"))
}

// clip keeps what a stranger wrote from filling or breaking the line.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s[:min(len(s), 400)]); len(r) > 80 {
		return string(r[:80]) + "…"
	}
	return s
}
