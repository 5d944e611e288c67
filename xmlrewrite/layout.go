// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"strings"

	"github.com/beevik/etree"
)

// lines returns what stands before the line of e, a child of parent, and by how
// much a line of its own children is indented further. Both are "" in a text
// that is not laid out in lines.
func (ed *edit) lines(parent, e *etree.Element) (line, unit string) {
	line = ed.written(lead(e))
	at := strings.LastIndexByte(line, '\n')
	if at < 0 {
		return "", ""
	}
	line = line[max(at-1, 0):] // with the \r of a \r\n
	if line[0] != '\r' {
		line = strings.TrimLeft(line, " \t")
	}
	last, ok := parent.Child[len(parent.Child)-1].(*etree.CharData)
	if !ok || !isSpace(last) {
		return line, "  "
	}
	end := ed.written(last)
	outer := end[strings.LastIndexByte(end, '\n')+1:]
	unit, ok = strings.CutPrefix(line[strings.LastIndexByte(line, '\n')+1:], outer)
	if !ok || unit == "" {
		return line, "  "
	}
	return line, unit
}

// written is white space as it stands in the source; c may be nil.
func (ed *edit) written(c *etree.CharData) string {
	if c == nil {
		return ""
	}
	if o, known := ed.known[c]; known {
		return string(o.src[o.start:o.end])
	}
	return c.Data
}

// layOut puts the content of a new element on lines of its own.
func (ed *edit) layOut(e *etree.Element, line, unit string) {
	inner := e.ChildElements()
	if line == "" || len(inner) == 0 {
		return
	}
	for _, c := range inner {
		e.InsertChildAt(c.Index(), ed.space(line+unit))
		ed.layOut(c, line+unit, unit)
	}
	e.AddChild(ed.space(line))
}
