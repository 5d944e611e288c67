// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/beevik/etree"
	"pgregory.net/rapid"

	. "diskhook/xmlrewrite"
)

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

// checkNoOp edits every disk without changing it.
func checkNoOp(t failer, doc *Document, in []byte) {
	t.Helper()
	if !bytes.Equal(doc.Bytes(), in) {
		t.Fatalf("reading and writing changed the text:\n%s", Diff(in, doc.Bytes(), "in", "out"))
	}
	for _, d := range doc.Disks() {
		if _, unique := doc.Disk(d.Target); !unique {
			continue
		}
		edited := doc.Clone()
		if err := edited.EditDisk(d.Target, func(*etree.Element) error { return nil }); err != nil {
			t.Fatalf("%v", err)
		}
		// An edit that does change something writes the tree out.
		if err := edited.EditDisk(d.Target, func(e *etree.Element) error { e.CreateAttr("zz", "1"); return nil }); err != nil {
			t.Fatalf("%v", err)
		}
		if err := edited.EditDisk(d.Target, func(e *etree.Element) error { e.RemoveAttr("zz"); return nil }); err != nil {
			t.Fatalf("%v", err)
		}
		if !bytes.Equal(edited.Bytes(), in) {
			t.Fatalf("an edit and its opposite changed the text:\n%s", Diff(in, edited.Bytes(), "in", "out"))
		}
	}
}

// chunk is a stretch of a generated document. A rewrite may do to touched ones
// what it likes; the others must be found again, in their order, with nothing
// between two that are next to each other.
type chunk struct {
	text    string
	touched bool
}

func join(chunks []chunk) string {
	var b strings.Builder
	for _, c := range chunks {
		b.WriteString(c.text)
	}
	return b.String()
}

// checkUntouched walks over the result along the untouched stretches.
func checkUntouched(t failer, chunks []chunk, after string) {
	t.Helper()
	rest, gap := after, false
	for i := 0; i < len(chunks); {
		if chunks[i].touched {
			gap = true
			i++
			continue
		}
		var run strings.Builder // neighbours are looked for as one
		for ; i < len(chunks) && !chunks[i].touched; i++ {
			run.WriteString(chunks[i].text)
		}
		at := strings.Index(rest, run.String())
		if at < 0 || at > 0 && !gap {
			t.Fatalf("%q is not where it was in\n%s", run.String(), after)
		}
		rest, gap = rest[at+run.Len():], false
	}
	if rest != "" && !gap {
		t.Fatalf("new text at the end: %q", rest)
	}
}

var (
	space  = rapid.SampledFrom([]string{"", " ", "\n", "\r\n  ", "\t", "\n\n    "})
	gapped = rapid.SampledFrom([]string{" ", "\n", "\r\n\t", "  "})
	// junk is what may stand between elements and means nothing.
	junk = rapid.SampledFrom([]string{"", "", "\n  ", "\r\n", "<!-- a < b & c -->", "<?keep  me ?>", "<![CDATA[<x>&]]>",
		"&#169; &amp; > ' \" é", "<x:y xmlns:x=\"urn:x\" x:a='1'/>", "<undeclared:e></undeclared:e>", "<empty></empty>", "<self\n/>"})
	value = rapid.SampledFrom([]string{"", "v", "a &amp; b", "&#10;&#9;", "&lt;&quot;&apos;", "ü&#xFC;", "two\nlines", "/x > y"})
	names = []string{"queues", "iothread", "future", "copy_on_read", "odd-one"}
)

func attribute(t *rapid.T, name, value string) string {
	quote := rapid.SampledFrom([]string{"'", "\""}).Draw(t, "quote")
	return gapped.Draw(t, "gap") + name + space.Draw(t, "before =") + "=" + space.Draw(t, "after =") + quote + value + quote
}

func attributes(t *rapid.T) string {
	var b strings.Builder
	for _, n := range names {
		if rapid.Bool().Draw(t, n) {
			b.WriteString(attribute(t, n, value.Draw(t, "value")))
		}
	}
	return b.String()
}

func emptyElement(t *rapid.T, name, attrs string) string {
	tag := "<" + name + attrs + rapid.SampledFrom([]string{"", " ", "\n"}).Draw(t, "end gap")
	if rapid.Bool().Draw(t, "self-closing") {
		return tag + "/>"
	}
	return tag + "></" + name + rapid.SampledFrom([]string{">", " >"}).Draw(t, "end tag")
}

// genDisk generates a disk whose driver, source and backing chain stand in any
// order among other things.
func genDisk(t *rapid.T, target string) []chunk {
	chunks := []chunk{{"<disk", true}, {attribute(t, "type", "file") + attributes(t), true}, {space.Draw(t, "gap") + ">", true}}
	source := "<source" + attribute(t, "file", "/srv/"+target) + attributes(t)
	if rapid.Bool().Draw(t, "startupPolicy") {
		source += attribute(t, "startupPolicy", "optional")
	}
	parts := rapid.Permutation([]chunk{
		{source + ">" + junk.Draw(t, "in source") + "</source>", true},
		{emptyElement(t, "driver", attributes(t)), true},
		{"\n <backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>", true},
		{emptyElement(t, "target", attribute(t, "dev", target)+attributes(t)), false},
		{emptyElement(t, "serial", ""), false},
		{emptyElement(t, "iotune", attributes(t)), false},
	}).Draw(t, "parts")
	for _, p := range parts {
		// "<!---->" keeps white space that is the document's own away from
		// the white space that goes with a removed element.
		chunks = append(chunks, chunk{junk.Draw(t, "junk") + "<!---->", false}, p)
	}
	return append(chunks, chunk{"</disk>", false})
}

func genDomain(t *rapid.T) (chunks []chunk) {
	text := func(s string) { chunks = append(chunks, chunk{s, false}) }
	text(rapid.SampledFrom([]string{"", "\uFEFF", "<?xml version='1.0'?>\r\n", "<?xml version=\"1.0\" encoding=\"utf-8\" standalone='yes' ?><!-- c -->"}).Draw(t, "prolog"))
	text("<domain" + attributes(t) + ">" + junk.Draw(t, "junk"))
	text("<name>n</name>" + junk.Draw(t, "junk") + "<devices" + attributes(t) + ">" + junk.Draw(t, "junk"))
	n := rapid.IntRange(1, 3).Draw(t, "disks")
	chosen := rapid.IntRange(0, n-1).Draw(t, "chosen")
	for i := range n {
		disk := genDisk(t, fmt.Sprintf("vd%c", 'a'+i))
		if i == chosen {
			disk[0].touched = true
			chunks = append(chunks, disk...)
			chunks = append(chunks, chunk{fmt.Sprintf("<!--chosen vd%c-->", 'a'+i), false})
		} else {
			text(join(disk))
		}
		text(junk.Draw(t, "junk"))
	}
	text("</devices>" + junk.Draw(t, "junk") + "</domain>" + rapid.SampledFrom([]string{"", "\n", "<!-- end -->\r\n"}).Draw(t, "epilog"))
	return chunks
}

func TestUntouchedBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunks := genDomain(t)
		in := join(chunks)
		doc, err := Parse([]byte(in))
		if err != nil {
			t.Fatalf("%v in\n%s", err, in)
		}
		checkNoOp(t, doc, []byte(in))

		_, mark, _ := strings.Cut(in, "<!--chosen ")
		target := mark[:3]
		out, err := Apply(doc, LocalDisk{Target: target, Path: "/dev/vg/copy", Block: rapid.Bool().Draw(t, "block")})
		if err != nil {
			t.Fatalf("%v", err)
		}
		checkUntouched(t, chunks, string(out.Bytes()))

		// The touched disk still has every attribute that is not the rewrite's.
		before, after := elementsOf(t, doc, target), elementsOf(t, out, target)
		for _, name := range []string{"disk", "source", "driver"} {
			for _, key := range names {
				if b, a := before[name][key], after[name][key]; b != a {
					t.Fatalf("%s/@%s was %q and is %q", name, key, b, a)
				}
			}
		}
		if d, _ := out.Disk(target); d.Source.Path() != "/dev/vg/copy" || d.Source.StartupPolicy != "" || d.Chain != nil || d.Terminated {
			t.Fatalf("the disk is %+v", d)
		}
	})
}

// elementsOf collects the attributes of a disk and its children.
func elementsOf(t failer, doc *Document, target string) map[string]map[string]string {
	t.Helper()
	found := map[string]map[string]string{}
	collect := func(e *etree.Element) {
		found[e.Tag] = map[string]string{}
		for _, a := range e.Attr {
			found[e.Tag][a.FullKey()] = a.Value
		}
	}
	err := doc.Clone().EditDisk(target, func(e *etree.Element) error {
		collect(e)
		for c := range e.ChildElementsSeq() {
			collect(c)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return found
}
