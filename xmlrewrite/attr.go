// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"encoding/xml"
	"iter"
	"strings"
)

// attrSpan is the place of one attribute in a start tag:
//
//	<disk  type = "file">
//	     │ │    │  │   └ end
//	     │ │    │  └ value
//	     │ │    └ equals
//	     │ └ name
//	     └ lead
type attrSpan struct{ lead, name, equals, value, end int }

const blank = " \t\r\n"

// attrSpans walks over the attributes of a start tag that encoding/xml took.
// A lead of no width means that white space is missing there.
func attrSpans(tag []byte) iter.Seq[attrSpan] {
	return func(yield func(attrSpan) bool) {
		i := bytes.IndexAny(tag, blank+"/>")
		for i >= 0 {
			at := attrSpan{lead: i}
			at.name = i + skip(tag[i:])
			if at.name == len(tag) || bytes.IndexByte([]byte("/>?"), tag[at.name]) >= 0 {
				return
			}
			n := bytes.IndexByte(tag[at.name:], '=')
			if n < 0 {
				return
			}
			at.equals = at.name + n
			at.value = at.equals + 1 + skip(tag[at.equals+1:]) + 1
			if at.value > len(tag) {
				return
			}
			n = bytes.IndexByte(tag[at.value:], tag[at.value-1])
			if n < 0 {
				return
			}
			at.end = at.value + n
			if !yield(at) {
				return
			}
			i = at.end + 1
		}
	}
}

func skip(b []byte) int { return len(b) - len(bytes.TrimLeft(b, blank)) }

// normalizeAttr decodes a quoted attribute value as XML asks for: white space
// written as such becomes a space, while a reference (&#10;) stays what it is.
// encoding/xml does not tell the two apart.
func normalizeAttr(quoted []byte) string {
	flat := strings.NewReplacer("\r\n", " ", "\r", " ", "\n", " ", "\t", " ").Replace(string(quoted))
	raw, err := xml.NewDecoder(strings.NewReader("<a v=" + flat + "/>")).RawToken()
	if start, ok := raw.(xml.StartElement); ok && err == nil {
		return start.Attr[0].Value
	}
	return flat
}

// unquoted finds the attribute without quotes, <threshold value=2/>, at which
// encoding/xml stopped: it reads up to the first byte of the value.
func unquoted(src []byte, stopped int) (name, value string, found bool) {
	for at := stopped; at >= max(stopped-1, 0); at-- {
		before := bytes.TrimRight(src[:at], blank)
		if !bytes.HasSuffix(before, []byte("=")) {
			continue
		}
		before = bytes.TrimRight(before[:len(before)-1], blank)
		name = string(before[bytes.LastIndexAny(before, blank+"<>'\"")+1:])
		value = string(src[at:])
		if end := strings.IndexAny(value, blank+"/<>'\""); end >= 0 {
			value = value[:end]
		}
		return name, value, name != "" && value != ""
	}
	return "", "", false
}
