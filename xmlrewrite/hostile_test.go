// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	. "diskhook/xmlrewrite"
)

// texts are well-formed (want nil) or not, and libxml2 says the same of each.
var texts = []struct {
	name, text string
	want       error
}{
	{"empty element", "<domain/>", nil},
	{"white space around", "\n<domain/>\n\n", nil},
	{"byte order mark", "\uFEFF<domain/>", nil},
	{"declaration", "<?xml version='1.0' encoding='utf-8' standalone='no' ?><domain/>", nil},
	{"undeclared prefix", "<domain><a:b a:c='1'/></domain>", nil},
	{"prefix undeclared again", "<domain xmlns:a='u'><b xmlns:a=''><a:c/></b></domain>", nil},
	{"one name in two namespaces", "<d xmlns:a='u' xmlns:b='v' a:x='1' b:x='2' x='3'/>", nil},
	{"reference outside ASCII", "<d a='&#x10FFFF;'>&#9;&#13;&#10;</d>", nil},
	{"replacement character", "<d a='\uFFFD'>&#xFFFD;</d>", nil},
	{"comment after the root", "<d/><!-- x --><?y z?>", nil},
	{"references in CDATA", "<d><![CDATA[&#xD800; ]] > <x>]]></d>", nil},
	{"white space in tags", "<d\n\ta\r\n=\t'1'\n></d\n>", nil},

	{"nothing", "", ErrMalformed},
	{"no element", "  \n", ErrMalformed},
	{"only a comment", "<!-- x -->", ErrMalformed},
	{"no XML", "virsh: error", ErrMalformed},
	{"text before", "x<d/>", ErrMalformed},
	{"text after", "<d/>x", ErrMalformed},
	{"reference after", "<d/>&#32;", ErrMalformed},
	{"CDATA after", "<d/><![CDATA[ ]]>", ErrMalformed},
	{"two roots", "<d/><d/>", ErrMalformed},
	{"truncated", "<domain><devices><disk>", ErrMalformed},
	{"truncated in a tag", "<domain><disk type='fi", ErrMalformed},
	{"truncated in a comment", "<domain><!-- ", ErrMalformed},
	{"truncated in CDATA", "<domain><![CDATA[", ErrMalformed},
	{"crossed tags", "<a><b></a></b>", ErrMalformed},
	{"end without start", "<a/></b>", ErrMalformed},
	{"other prefix at the end", "<x:a xmlns:x='u' xmlns:y='u'></y:a>", ErrMalformed},
	{"duplicate attribute", "<d a='1' b='2' a='1'/>", ErrDuplicateAttribute},
	{"duplicate declaration", "<d xmlns:a='u' xmlns:a='u'/>", ErrDuplicateAttribute},
	{"duplicate among many", "<d a='' b='' c='' d='' e='' f='' g='' h='' i='' j='' c=''/>", ErrDuplicateAttribute},
	{"no space between attributes", "<d a='1'b='2'/>", ErrMalformed},
	{"unquoted attribute", "<d a=1/>", ErrMalformed},
	{"attribute without value", "<d a/>", ErrMalformed},
	{"< in an attribute", "<d a='<'/>", ErrMalformed},
	{"bare ampersand", "<d>a & b</d>", ErrMalformed},
	{"unknown entity", "<d>&nbsp;</d>", ErrMalformed},
	{"surrogate reference", "<d>&#xD800;</d>", ErrMalformed},
	{"surrogate reference in an attribute", "<d a='&#0057343;'/>", ErrMalformed},
	{"reference to NUL", "<d>&#0;</d>", ErrMalformed},
	{"reference beyond Unicode", "<d>&#x110000;</d>", ErrMalformed},
	{"]]> in text", "<d>]]></d>", ErrMalformed},
	{"-- in a comment", "<d><!-- a -- b --></d>", ErrMalformed},
	{"NUL", "<d>\x00</d>", ErrMalformed},
	{"control character in a comment", "<d><!-- \x01 --></d>", ErrMalformed},
	{"U+FFFE", "<d>\uFFFE</d>", ErrMalformed},
	{"U+FFFF in a comment", "<d><!-- \uFFFF --></d>", ErrMalformed},
	{"not UTF-8", "<d>\xff</d>", ErrMalformed},
	{"not UTF-8 in a comment", "<d><!-- \xe9 --></d>", ErrMalformed},
	{"late declaration", " <?xml version='1.0'?><d/>", ErrMalformed},
	{"declaration without version", "<?xml encoding='utf-8'?><d/>", ErrMalformed},
	{"declaration in wrong order", "<?xml version='1.0' standalone='yes' encoding='utf-8'?><d/>", ErrMalformed},
	{"junk in the declaration", "<?xml version='1.0' x?><d/>", ErrMalformed},
	{"reserved instruction", "<d><?XML x?></d>", ErrMalformed},
}

// stricter are texts that libxml2 might take and that we never do.
var stricter = []struct {
	name, text string
	want       error
}{
	{"document type", "<!DOCTYPE domain><domain/>", ErrDTD},
	{"external document type", "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'><domain/>", ErrDTD},
	{"entity bomb", "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'><!ENTITY c '&b;&b;'>]><d>&c;</d>", ErrDTD},
	{"document type inside", "<d><!DOCTYPE x></d>", ErrDTD},
	{"Latin 1", "<?xml version='1.0' encoding='ISO-8859-1'?><d/>", ErrMalformed},
	{"UTF-16", "\xff\xfe<\x00d\x00/\x00>\x00", ErrMalformed},
	{"XML 1.1", "<?xml version='1.1'?><d/>", ErrMalformed},
	{"same attribute by two prefixes", "<d xmlns:a='u' xmlns:b='u' a:x='1' b:x='2'/>", ErrDuplicateAttribute},
	{"same attribute by two prefixes among many", "<d xmlns:a='u' xmlns:b='u' c='' d='' e='' f='' g='' h='' i='' a:x='1' b:x='2'/>", ErrDuplicateAttribute},
	{"257 levels", strings.Repeat("<a>", 257) + strings.Repeat("</a>", 257), ErrTooDeep},
	{"100000 levels", strings.Repeat("<a>", 100000) + strings.Repeat("</a>", 100000), ErrTooDeep},
	{"65 namespaces", "<d" + manyNamespaces(65) + "/>", ErrMalformed},
	{"a million elements", "<domain>" + strings.Repeat("<a/>", 1<<20) + "</domain>", ErrTooLarge},
	{"more than 16 MiB", "<d>" + strings.Repeat(" ", MaxSize) + "</d>", ErrTooLarge},
}

func manyNamespaces(n int) (s string) {
	for i := range n {
		s += fmt.Sprintf(" xmlns:n%d='u%d'", i, i)
	}
	return s
}

func TestParseErrors(t *testing.T) {
	for _, c := range append(texts, stricter...) {
		t.Run(c.name, func(t *testing.T) {
			doc, err := Parse([]byte(c.text))
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err != nil && (doc != nil || strings.ContainsAny(err.Error(), "\n\r\x00") || len(err.Error()) > 300) {
				t.Errorf("%v and error %q", doc, err)
			}
			if err == nil && string(doc.Bytes()) != c.text {
				t.Errorf("reads back as %q", doc.Bytes())
			}
		})
	}
	depth := strings.Repeat("<a>", MaxDepth) + strings.Repeat("</a>", MaxDepth)
	for _, ok := range []string{depth, "<d" + manyNamespaces(64) + "/>", "<d>" + strings.Repeat(" ", MaxSize-7) + "</d>"} {
		if _, err := Parse([]byte(ok)); err != nil {
			t.Errorf("at a limit: %v", err)
		}
	}
}

// TestParseErrorsNameTheLine: the one line says where and what.
func TestParseErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"<a>\n<b>\n</a>":              "malformed XML: line 3: element b, opened in line 2, is not closed before </a>",
		"<a>\n\n<b c='' c=''/>":       "XML with a duplicate attribute: line 3: c",
		"<a>\n&x\x1b\n\n;</a>":        "malformed XML: line 2: character U+001B is not allowed",
		"<a>" + "<b a='1'c='2'/></a>": "malformed XML: line 1: no white space between attributes",
	} {
		if _, err := Parse([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	_, err := Parse([]byte("<" + strings.Repeat("x", 1<<20) + "></y>"))
	if err == nil || len(err.Error()) > 300 {
		t.Errorf("a long name gives an error of %d bytes", len(err.Error()))
	}
}

// TestXmllintAgrees asks libxml2 about every text of the first table.
func TestXmllintAgrees(t *testing.T) {
	if os.Getenv("SKIP_VIRT_XML_VALIDATE") == "1" {
		t.Skip("SKIP_VIRT_XML_VALIDATE=1")
	}
	xmllint, err := exec.LookPath("xmllint")
	if err != nil {
		t.Fatal("xmllint is missing: apt-get install libxml2-utils, or set SKIP_VIRT_XML_VALIDATE=1")
	}
	for _, c := range texts {
		cmd := exec.Command(xmllint, "--noout", "--nonet", "-")
		cmd.Stdin = strings.NewReader(c.text)
		out, err := cmd.CombinedOutput()
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: xmllint says %v %s", c.name, err, out)
		}
	}
}

// TestHugeIsLinear: no kind of text takes much longer than another. Two MiB
// are enough to tell linear from quadratic; BenchmarkSize goes to the limit.
func TestHugeIsLinear(t *testing.T) {
	const size = 2 << 20
	fill := func(head, each, tail string) []byte {
		n := (size - len(head) - len(tail)) / len(each)
		return []byte(head + strings.Repeat(each, n) + tail)
	}
	var attributes bytes.Buffer
	attributes.WriteString("<domain><devices><disk")
	for i := 0; attributes.Len() < size-100; i++ {
		fmt.Fprintf(&attributes, " a%d=''", i)
	}
	attributes.WriteString("><target dev='vda'/></disk></devices></domain>")
	for name, text := range map[string][]byte{
		"one comment":         fill("<domain><!--", "x", "--></domain>"),
		"attributes":          attributes.Bytes(),
		"references":          fill("<domain>", "&#x41;", "</domain>"),
		"references in value": fill("<domain a='", "&#65;", "'/>"),
		"prefixes":            fill("<domain"+manyNamespaces(64)+"><devices>", "<zz:a/>", "</devices></domain>"),
		"children":            fill("<domain><devices>", "<a/>", "</devices></domain>"),
		"disks":               fill("<domain><devices>", "<disk><target dev='vda'/><source file='/srv/a name that is longer than most names are.qcow2'/>           </disk>", "</devices></domain>"),
		"cut short":           fill("<domain>", "<a>&lt;</a>", "<"),
	} {
		start := time.Now()
		doc, err := Parse(text)
		if (err != nil) != (name == "cut short") {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			doc.Disks()
		}
		// Linear work takes 0.2 s, quadratic work many minutes.
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("%s: %v", name, d)
		} else {
			t.Logf("%s: %v", name, d.Round(time.Millisecond))
		}
	}
}
