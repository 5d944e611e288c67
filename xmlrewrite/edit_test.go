// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/beevik/etree"

	. "diskhook/xmlrewrite"
)

// TestEditDisk: each kind of change shows in the text where it was made.
func TestEditDisk(t *testing.T) {
	const in = "<domain><devices><disk  type = \"file\"\n a='1'><x></x><y /><!-- c --><target dev='vda'/>t</disk ></devices></domain>"
	for name, c := range map[string]struct {
		change   func(*etree.Element)
		old, new string
	}{
		"attribute value":    {func(e *etree.Element) { e.CreateAttr("type", "a\"b'\n") }, `"file"`, `"a&quot;b&apos;&#10;"`},
		"attribute gone":     {func(e *etree.Element) { e.RemoveAttr("type") }, `  type = "file"`, ""},
		"attribute new":      {func(e *etree.Element) { e.CreateAttr("b", "<&>") }, "a='1'", "a='1' b='&lt;&amp;&gt;'"},
		"attribute in empty": {func(e *etree.Element) { e.SelectElement("y").CreateAttr("n", "1") }, "<y />", "<y n='1' />"},
		"content in empty":   {func(e *etree.Element) { e.SelectElement("y").SetText("a<b>&\r") }, "<y />", "<y>a&lt;b&gt;&amp;&#13;</y>"},
		"new element":        {func(e *etree.Element) { e.SelectElement("x").CreateElement("n:z").CreateElement("q") }, "<x></x>", "<x><n:z><q/></n:z></x>"},
		"new CDATA":          {func(e *etree.Element) { e.SelectElement("x").CreateCData("<&>") }, "<x></x>", "<x><![CDATA[<&>]]></x>"},
		"new comment":        {func(e *etree.Element) { e.SelectElement("x").CreateComment(" z ") }, "<x></x>", "<x><!-- z --></x>"},
		"new instruction":    {func(e *etree.Element) { e.SelectElement("x").CreateProcInst("p", "i") }, "<x></x>", "<x><?p i?></x>"},
		"renamed":            {func(e *etree.Element) { e.SelectElement("x").Tag = "z" }, "<x></x>", "<z/>"},
		"removed":            {func(e *etree.Element) { e.RemoveChild(e.SelectElement("x")) }, "<x></x>", ""},
		"comment changed":    {func(e *etree.Element) { e.Child[2].(*etree.Comment).Data = "d" }, "<!-- c -->", "<!--d-->"},
		"text changed":       {func(e *etree.Element) { e.Child[4].(*etree.CharData).Data = "u" }, "/>t<", "/>u<"},
		"moved":              {func(e *etree.Element) { e.AddChild(e.SelectElement("x")) }, "<x></x><y /><!-- c --><target dev='vda'/>t", "<y /><!-- c --><target dev='vda'/>t<x></x>"},
		"nothing":            {func(e *etree.Element) { e.SelectElement("x").SetText("") }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			doc := parse(t, []byte(in))
			if err := doc.EditDisk("vda", func(e *etree.Element) error { c.change(e); return nil }); err != nil {
				t.Fatal(err)
			}
			want := strings.Replace(in, c.old, c.new, 1)
			if got := string(doc.Bytes()); got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
		})
	}
}

// TestEditDiskFollowsTheTarget: after renaming a target the disk is found by
// the new name.
func TestEditDiskFollowsTheTarget(t *testing.T) {
	doc := parse(t, []byte("<disk><target dev='vda'/></disk>"))
	copied := doc.Clone()
	err := doc.EditDisk("vda", func(e *etree.Element) error { e.SelectElement("target").CreateAttr("dev", "sda"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := doc.Disk("sda"); !ok {
		t.Error("not found by its new name")
	}
	if _, ok := doc.Disk("vda"); ok {
		t.Error("found by its old name")
	}
	if _, ok := copied.Disk("vda"); !ok {
		t.Error("the clone changed too")
	}
}

func TestEditErrors(t *testing.T) {
	const in = "<domain><name>n</name><devices><disk><target dev='vda'/></disk></devices></domain>"
	own := errors.New("no")
	for name, c := range map[string]struct {
		change func(*etree.Element) error
		want   error
	}{
		"own":      {func(e *etree.Element) error { e.CreateAttr("a", "b"); return own }, own},
		"bad name": {func(e *etree.Element) error { e.CreateElement("a b=c"); return nil }, ErrMalformed},
		"twice": {func(e *etree.Element) error {
			e.Attr = make([]etree.Attr, 2)
			e.Attr[0].Key, e.Attr[1].Key = "a", "a"
			return nil
		}, ErrDuplicateAttribute},
		"end of CDATA":    {func(e *etree.Element) error { e.CreateCData("]]><!DOCTYPE x>"); return nil }, ErrDTD},
		"control":         {func(e *etree.Element) error { e.SetText("\x01"); return nil }, ErrMalformed},
		"second root":     {func(e *etree.Element) error { e.Tag = "disk></disk><disk"; return nil }, ErrMalformed},
		"too large":       {func(e *etree.Element) error { e.SetText(strings.Repeat("x", MaxSize)); return nil }, ErrTooLarge},
		"renamed":         {func(e *etree.Element) error { e.Tag = "filesystem"; return nil }, ErrUnsupported},
		"other namespace": {func(e *etree.Element) error { e.CreateAttr("xmlns", "u"); return nil }, ErrUnsupported},
		"too deep": {func(e *etree.Element) error {
			for range MaxDepth - 1 {
				e = e.CreateElement("e")
			}
			return nil
		}, ErrTooDeep},
	} {
		doc := parse(t, []byte(in))
		if err := doc.EditDisk("vda", c.change); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := doc.EditChild("", "", "name", c.change); !errors.Is(err, c.want) {
			t.Errorf("%s in a child: %v", name, err)
		}
		if got := string(doc.Bytes()); got != in {
			t.Errorf("%s: the document changed: %s", name, got)
		}
	}
	doc := parse(t, []byte(in))
	deep := func(e *etree.Element) error {
		for range MaxDepth - 3 {
			e = e.CreateElement("e")
		}
		return nil
	}
	if err := doc.EditDisk("vda", deep); err != nil {
		t.Error(err)
	}
	parse(t, doc.Bytes())
}

// TestEditChild changes a child of <domain>, or makes it before the end tag.
func TestEditChild(t *testing.T) {
	const qemu = "http://libvirt.org/schemas/domain/qemu/1.0"
	add := func(e *etree.Element) error {
		arg := e.CreateElement("arg")
		arg.Space = e.Space
		arg.CreateAttr("value", "-x")
		return nil
	}
	for in, want := range map[string]string{
		"<domain>\n  <name>n</name>\n  <devices>\n  </devices>\n</domain>\n": "<domain>\n  <name>n</name>\n  <devices>\n  </devices>\n" +
			"  <qemu:commandline xmlns:qemu='" + qemu + "'><qemu:arg value='-x'/></qemu:commandline>\n</domain>\n",
		"<domain><name>n</name></domain>": "<domain><name>n</name><qemu:commandline xmlns:qemu='" + qemu + "'><qemu:arg value='-x'/></qemu:commandline></domain>",
		"<domain xmlns:q=\"" + qemu + "\"><q:commandline><q:arg value='-a'/></q:commandline></domain>": "<domain xmlns:q=\"" + qemu +
			"\"><q:commandline><q:arg value='-a'/><q:arg value=\"-x\"/></q:commandline></domain>",
	} {
		doc := parse(t, []byte(in))
		if err := doc.EditChild("qemu", qemu, "commandline", add); err != nil {
			t.Fatal(err)
		}
		if got := string(doc.Bytes()); got != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
		if found := parse(t, doc.Bytes()).Children(qemu, "commandline"); len(found) != 1 {
			t.Errorf("found %d", len(found))
		}
		if n := len(doc.Children(qemu, "commandline")); n != 1 {
			t.Errorf("found %d without reading again", n)
		}
	}
	for _, in := range []string{"<domain/>", "<disk><target dev='a'/></disk>", "<other></other>"} {
		doc := parse(t, []byte(in))
		if err := doc.EditChild("qemu", qemu, "commandline", add); !errors.Is(err, ErrUnsupported) || string(doc.Bytes()) != in {
			t.Errorf("%s: %v, %s", in, err, doc.Bytes())
		}
	}
}

func TestApplyStopsAtTheFirstError(t *testing.T) {
	in := fixture(t, "libvirt-file.in.xml")
	doc := parse(t, in)
	out, err := Apply(doc, LocalDisk{Target: "vda", Path: "/a"}, LocalDisk{Target: "sda", Path: "/b"}, LocalDisk{Target: "vdb", Path: "/c"})
	if out != nil || !errors.Is(err, ErrUnsupported) || !strings.HasPrefix(err.Error(), "disk sda: ") {
		t.Errorf("%v", err)
	}
	if string(doc.Bytes()) != string(in) {
		t.Error("the document changed")
	}
	same, err := Apply(doc)
	if err != nil || string(same.Bytes()) != string(in) {
		t.Errorf("no rewriter: %v", err)
	}
}

func TestDiff(t *testing.T) {
	got := Diff([]byte("a\nb\nc\n"), []byte("a\nB\nc\n"), "old", "new")
	if want := "--- old\n+++ new\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"; got != want {
		t.Errorf("%q", got)
	}
	if d := Diff([]byte("x"), []byte("x"), "a", "b"); d != "" {
		t.Errorf("%q", d)
	}
}
