// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// Bounds on what thin_dump never comes near.
const (
	maxTag        = 64 << 10
	maxAttributes = 16
)

// xmlScanner splits the XML of thin_dump into tags. Encoding/xml would take
// longer for a mapping than everything else together. What thin_dump does not
// write (text, entities, a document type) is refused, never skipped.
type xmlScanner struct {
	r    *bufio.Reader
	line uint64

	// The tag at hand. Names and values are valid until the next.
	name       []byte
	opens      bool // <name …>
	closes     bool // </name>; both of an empty element, <name …/>
	attributes []xmlAttribute
}

type xmlAttribute struct{ name, value []byte }

func newXMLScanner(r io.Reader) *xmlScanner {
	return &xmlScanner{r: bufio.NewReaderSize(r, maxTag), line: 1, attributes: make([]xmlAttribute, 0, maxAttributes)}
}

func (s *xmlScanner) damaged(what string) error { return damaged("XML, line %d: %s", s.line, what) }

// next goes to the next tag; io.EOF says that there is none.
func (s *xmlScanner) next() error {
	for {
		tag, err := s.r.ReadSlice('>')
		s.line += uint64(bytes.Count(tag, []byte{'\n'}))
		tag = skipBlanks(tag)
		switch {
		case errors.Is(err, io.EOF) && len(tag) == 0:
			return io.EOF
		case errors.Is(err, io.EOF):
			return s.damaged("it ends in the middle")
		case errors.Is(err, bufio.ErrBufferFull):
			return s.damaged("an element is too long")
		case err != nil:
			return err
		case tag[0] != '<':
			return s.damaged("text between elements")
		case bytes.HasPrefix(tag, []byte("<!--")):
			if err := s.comment(tag); err != nil {
				return err
			}
		case bytes.HasPrefix(tag, []byte("<?")) && bytes.HasSuffix(tag, []byte("?>")):
		case tag[1] == '!' || tag[1] == '?':
			return s.damaged("a declaration")
		default:
			return s.tag(tag[1 : len(tag)-1])
		}
	}
}

// comment skips the rest of a comment that may have tags in it.
func (s *xmlScanner) comment(tag []byte) error {
	ends := len(tag) >= len("<!---->") && bytes.HasSuffix(tag, []byte("-->"))
	for !ends {
		more, err := s.r.ReadSlice('>')
		s.line += uint64(bytes.Count(more, []byte{'\n'}))
		if err != nil {
			return s.damaged("a comment that does not end")
		}
		ends = bytes.HasSuffix(more, []byte("-->"))
	}
	return nil
}

// tag takes apart what is between < and >.
func (s *xmlScanner) tag(text []byte) error {
	s.opens, s.closes, s.attributes = true, false, s.attributes[:0]
	if n := len(text); n > 0 && text[0] == '/' {
		s.opens, s.closes, text = false, true, text[1:]
	} else if n > 0 && text[n-1] == '/' {
		s.closes, text = true, text[:n-1]
	}
	s.name, text = word(text)
	if len(s.name) == 0 {
		return s.damaged("an element without a name")
	}
	for {
		rest := skipBlanks(text)
		switch {
		case len(rest) == 0:
			return nil
		case len(rest) == len(text) || !s.opens || len(s.attributes) == maxAttributes:
			return s.damaged("an element that thin_dump does not write")
		}
		var a xmlAttribute
		a.name, text = word(rest)
		text = skipBlanks(text)
		if len(a.name) == 0 || len(text) == 0 || text[0] != '=' {
			return s.damaged("an attribute without a value")
		}
		text = skipBlanks(text[1:])
		if len(text) == 0 || text[0] != '"' && text[0] != '\'' {
			return s.damaged("an attribute without a quoted value")
		}
		end := bytes.IndexByte(text[1:], text[0])
		if end < 0 {
			return s.damaged("an attribute whose value does not end")
		}
		a.value, text = text[1:1+end], text[end+2:]
		s.attributes = append(s.attributes, a)
	}
}

func skipBlanks(text []byte) []byte {
	i := 0
	for i < len(text) && (text[i] == ' ' || text[i] == '\t' || text[i] == '\r' || text[i] == '\n') {
		i++
	}
	return text[i:]
}

// word splits text behind the name that it begins with.
func word(text []byte) (name, rest []byte) {
	i := 0
	for i < len(text) && (text[i] >= 'a' && text[i] <= 'z' || text[i] >= 'A' && text[i] <= 'Z' || text[i] == '_') {
		i++
	}
	return text[:i], text[i:]
}

// value is an attribute's, and whether it is there once.
func (s *xmlScanner) value(name string) (value []byte, there bool, err error) {
	for _, a := range s.attributes {
		if string(a.name) != name {
			continue
		}
		if there {
			return nil, true, s.damaged(name + " is given twice")
		}
		value, there = a.value, true
	}
	return value, there, nil
}

// number is the value of an attribute that must be a number, limit at most.
func (s *xmlScanner) number(name string, limit uint64) (uint64, error) {
	v, there, err := s.value(name)
	switch {
	case err != nil:
		return 0, err
	case !there:
		return 0, s.damaged(string(s.name) + " has no " + name)
	}
	var n uint64
	for _, c := range v {
		d := uint64(c - '0')
		if d > 9 || n > (limit-d)/10 || d > limit {
			return 0, s.damaged(name + " is no number that is possible")
		}
		n = n*10 + d
	}
	if len(v) == 0 {
		return 0, s.damaged(name + " is empty")
	}
	return n, nil
}
