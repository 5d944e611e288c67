// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Here are the rules of XML 1.0 and its namespaces that libxml2 enforces and
// encoding/xml's raw tokens do not.

// resolve finds the namespace of a prefix; the innermost declaration wins.
func (s *scanner) resolve(prefix string) string {
	for i := len(s.scope) - 1; i >= 0; i-- {
		if s.scope[i].prefix == prefix {
			if s.scope[i].uri == "" && prefix != "" {
				return unbound
			}
			return s.scope[i].uri
		}
	}
	switch prefix {
	case "":
		return ""
	case "xml":
		return "http://www.w3.org/XML/1998/namespace"
	}
	return unbound
}

// duplicate finds an attribute that is given twice: the same local name in the
// same namespace, however the prefixes are spelled.
func (s *scanner) duplicate(attrs []xml.Attr) (string, bool) {
	if len(attrs) <= 8 { // nearly always, and then a map costs more than it saves
		for i, a := range attrs {
			for _, b := range attrs[:i] {
				if a.Name.Local == b.Name.Local && s.expand(a.Name) == s.expand(b.Name) {
					return a.Name.Local, true
				}
			}
		}
		return "", false
	}
	seen := make(map[xml.Name]bool, len(attrs))
	for _, a := range attrs {
		name := s.expand(a.Name)
		if seen[name] {
			return a.Name.Local, true
		}
		seen[name] = true
	}
	return "", false
}

// expand replaces the prefix of an attribute's name by its namespace. The
// space keeps namespaces apart from prefixes that stay because nobody declared
// them. An attribute without a prefix is in no namespace.
func (s *scanner) expand(name xml.Name) xml.Name {
	if name.Space != "" && name.Space != "xmlns" {
		if uri := s.resolve(name.Space); uri != unbound {
			name.Space = " " + uri
		}
	}
	return name
}

// checkCharacters refuses what is not UTF-8 and the characters that XML 1.0
// forbids everywhere, comments included.
func (s *scanner) checkCharacters() error {
	for i := 0; i < len(s.src); {
		c := s.src[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\t' && c != '\n' && c != '\r' {
				return s.errorf(ErrMalformed, i, fmt.Sprintf("character U+%04X is not allowed", c))
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(s.src[i:])
		if r == utf8.RuneError && n == 1 {
			return s.errorf(ErrMalformed, i, "not UTF-8")
		}
		if r == 0xFFFE || r == 0xFFFF {
			return s.errorf(ErrMalformed, i, fmt.Sprintf("character U+%04X is not allowed", r))
		}
		i += n
	}
	return nil
}

// checkDeclaration accepts <?xml version="1.0" encoding="UTF-8" standalone="…"?>
// at the very start, the last two optional, in this order (XML 1.0, 2.8).
func (s *scanner) checkDeclaration(start int, written []byte) error {
	bad := s.errorf(ErrMalformed, start, "bad XML declaration")
	if start != 0 {
		return s.errorf(ErrMalformed, start, "an XML declaration inside the document")
	}
	order, rest := []string{"version", "encoding", "standalone"}, written
	for at := range attrSpans(written) {
		i := slices.Index(order, strings.TrimRight(string(written[at.name:at.equals]), blank))
		if i < 0 || at.lead == at.name || i > 0 && order[0] == "version" {
			return bad
		}
		value := string(written[at.value:at.end])
		switch order[i] {
		case "version":
			if value != "1.0" {
				return bad
			}
		case "encoding":
			if !strings.EqualFold(value, "UTF-8") {
				return s.errorf(ErrMalformed, start, errEncoding.Error())
			}
		case "standalone":
			if value != "yes" && value != "no" {
				return bad
			}
		}
		order, rest = order[i+1:], written[at.end+1:]
	}
	if len(order) == 3 || string(bytes.TrimLeft(rest, blank)) != "?>" {
		return bad
	}
	return nil
}

// hasSurrogateReference finds references such as &#xD800;, which encoding/xml
// reads as U+FFFD and libxml2 refuses.
func hasSurrogateReference(text []byte) bool {
	for {
		_, rest, found := bytes.Cut(text, []byte("&#"))
		if !found {
			return false
		}
		digits, _, _ := bytes.Cut(rest, []byte(";"))
		base, number := 10, string(digits)
		if strings.HasPrefix(number, "x") {
			base, number = 16, number[1:]
		}
		if n, err := strconv.ParseUint(number, base, 32); err == nil && n >= 0xD800 && n <= 0xDFFF {
			return true
		}
		text = rest
	}
}
