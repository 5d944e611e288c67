// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

const uuid = "5e2d7f0a-0d1c-4b52-9f0e-3b1f6a2c9d10"

// allKinds has one disk of each kind, and each thing that can lie below.
var allKinds = []BoundDisk{
	{Target: "vda", Serial: "s'1\"", Source: "/run/<a>", Local: &Local{"lvmthin", "now", "", "keep", "LV-1", "m1"},
		Origin: []byte("<disk type='file'><driver name=\"qemu\"/><source file='/a &amp; b'/></disk>")},
	{Target: "vdb", Source: "/v", Volume: &Volume{"vol-1"}},
	{Target: "vdc", Quorum: &Quorum{"db", "export", "vhost-user"}, Origin: []byte("<disk/>")},
	{Target: "vdd", Image: &Image{"repo", "i", "qcow2"}},
	{Target: "vde", Thin: &Thin{"cluster", "v"}},
	{Target: "vdf", Local: &Local{Backend: "dir"}, Origin: []byte("<disk/>"), OriginImage: &Image{"r", "i", ""}},
	{Target: "vdg", Local: &Local{Backend: "dir"}, OriginThin: &Thin{"c", "v"}},
}

func domain(inside string) string {
	return "<domain type='kvm'>\n  <name>n</name>\n  <uuid>" + uuid + "</uuid>\n" + inside + "  <memory>1</memory>\n</domain>\n"
}

func TestMetadataRoundTrip(t *testing.T) {
	for name, inside := range map[string]string{
		"none":            "",
		"empty":           "  <metadata/>\n",
		"others":          "  <metadata>\n    <a:b xmlns:a='u'/>\n    <!-- kept --></metadata>\n",
		"prefix taken":    "  <metadata><dh:disks xmlns:dh='urn:somebody:else'/></metadata>\n",
		"ours already":    "  <metadata>\n    <a:b xmlns:a='u'></a:b><disks xmlns='urn:diskhook:1' domain='x'/>\n  </metadata>\n",
		"in a second one": "  <metadata><a:b xmlns:a='u'/></metadata><metadata><a:b xmlns:a='u'/><disks xmlns='urn:diskhook:&#49;' domain='x'/></metadata>\n",
		"not the element": "  <metadata><a:b xmlns:a='u'><disks xmlns='urn:diskhook:1'/></a:b></metadata>\n",
	} {
		t.Run(name, func(t *testing.T) {
			doc := parse(t, []byte(domain(inside)))
			out, err := Apply(doc, SetMetadata{allKinds})
			if err != nil {
				t.Fatal(err)
			}
			again := parse(t, out.Bytes())
			m, err := again.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&Metadata{uuid, allKinds}, m); diff != "" {
				t.Error(diff)
			}
			twice, err := Apply(again, SetMetadata{m.Disks})
			if err != nil || string(twice.Bytes()) != string(out.Bytes()) {
				t.Errorf("writing what was read changes it: %v\n%s", err, Diff(out.Bytes(), twice.Bytes(), "once", "twice"))
			}
			removed, err := Apply(again, RemoveMetadata{})
			if err != nil {
				t.Fatal(err)
			}
			if m, err := removed.Metadata(); m != nil || err != nil {
				t.Errorf("still there: %v %v", m, err)
			}
			want := domain(inside)
			switch name {
			case "empty":
				want = domain("")
			case "in a second one":
				want = strings.Replace(want, "<disks xmlns='urn:diskhook:&#49;' domain='x'/>", "", 1)
			case "ours already":
				want = strings.Replace(want, "<disks xmlns='urn:diskhook:1' domain='x'/>", "", 1)
			}
			if got := string(removed.Bytes()); got != want {
				t.Errorf("after taking it out:\n%s", Diff([]byte(want), removed.Bytes(), "want", "got"))
			}
		})
	}
}

// TestMetadataSpellings: libxml2 and other tools write it in their own way.
func TestMetadataSpellings(t *testing.T) {
	want := &Metadata{uuid, []BoundDisk{{Target: "vda", Local: &Local{Backend: "dir"}, Origin: []byte(`<disk xmlns="" type="file"/>`)}}}
	const inside = `isks %A domain='5E2D7F0A0D1C4B529F0E3B1F6A2C9D10'><%disk target="vda"><!-- --><%local  backend = 'dir'></%local><%origin><disk xmlns="" type="file"/></%origin></%disk></%disks>`
	for _, c := range []struct{ prefix, declaration, root string }{
		{"dh:", "xmlns:dh='urn:diskhook:1'", ""},
		{"ns0:", `xmlns:ns0="urn:diskhook:1"`, ""},
		{"", "xmlns='urn:diskhook:1'", ""},
		{"q:", "", "xmlns:q='urn:diskhook:1'"},
		{"q:", "xmlns:q='urn:diskhook:&#49;'", "xmlns:q='urn:other'"},
	} {
		text := strings.NewReplacer("%A", c.declaration, "%", c.prefix).Replace("<metadata><%d" + inside + "</metadata>")
		text = strings.Replace(domain(text), "<domain", "<domain "+c.root, 1)
		m, err := parse(t, []byte(text)).Metadata()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Errorf("%s:\n%s", text, diff)
		}
	}
}

func TestNoMetadata(t *testing.T) {
	for _, text := range []string{
		domain(""),
		domain("<metadata/>"),
		domain("<metadata><disks/><dh:disks/><dh:disks xmlns:dh='urn:diskhook:2'/></metadata>"),
		domain("<m:metadata xmlns:m='u'><disks xmlns='urn:diskhook:1'/></m:metadata>"),
		"<disk><metadata><disks xmlns='urn:diskhook:1'/></metadata></disk>",
	} {
		if m, err := parse(t, []byte(text)).Metadata(); m != nil || err != nil {
			t.Errorf("%s: %v %v", text, m, err)
		}
	}
}

func TestDamagedMetadata(t *testing.T) {
	const one = "<disks xmlns='urn:diskhook:1' domain='d'><disk target='vda'><volume id='v'/></disk></disks>"
	for text, want := range map[string]string{
		one + one:                                            "it is there twice",
		one + "</metadata><metadata>" + one:                  "it is there twice",
		"<disks xmlns='urn:diskhook:1'/>":                    "it names no domain",
		strings.Replace(one, "target", "t", 1):               "a disk without target",
		strings.Replace(one, "<volume", "<thin/><volume", 1): "disk vda is bound to 2 things",
		strings.Replace(one, "<volume id='v'/>", "", 1):      "disk vda is bound to nothing",
		strings.Replace(one, "</disks>", "<disk target='vda'><thin/></disk></disks>", 1): "disk vda is there twice",
		strings.Replace(one, "<disk ", "<rule/><disk ", 1):                               "unknown element rule",
		strings.Replace(one, "domain=", "version='2' domain=", 1):                        "unknown attribute @version",
	} {
		doc := parse(t, []byte(domain("<metadata>"+text+"</metadata>")))
		m, err := doc.Metadata()
		if m != nil || !errors.Is(err, ErrMetadata) || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, %v", text, m, err)
		}
		if _, err := Apply(doc, SetMetadata{allKinds}); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: written over: %v", text, err)
		}
		if out, err := Apply(doc, RemoveMetadata{}); err != nil || strings.Contains(string(out.Bytes()), "urn:diskhook") {
			t.Errorf("%s: not removed: %v", text, err)
		}
	}
}

// TestNewerMetadata: what a newer diskhook wrote is told, never ignored, and
// never written over.
func TestNewerMetadata(t *testing.T) {
	for text, want := range map[string][]string{
		"<mirror to='x'/>":                          {"mirror", "mirror/@to"},
		"<local backend='dir' compress='zstd'/>":    {"local/@compress"},
		"<volume id='v'/><encrypt/>":                {"encrypt"},
		"<volume id='v'/><volume id='w'/>":          {"volume"},
		"<volume id='v'/><x:y xmlns:x='u'/>":        {"x:y"},
		"<thin/><origin><tape n='1'/></origin>":     {"origin/tape", "origin/tape/@n"},
		"<thin/><origin><image/><thin/></origin>":   {"origin/thin"},
		"<thin/><origin><image x:id='1'/></origin>": {"origin/image/@x:id"},
	} {
		doc := parse(t, []byte(domain("<metadata><disks xmlns='urn:diskhook:1' domain='d'><disk target='vda'>"+text+"</disk></disks></metadata>")))
		m, err := doc.Metadata()
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		b, _ := m.Disk("vda")
		if diff := cmp.Diff(want, b.Unknown); diff != "" {
			t.Errorf("%s:\n%s", text, diff)
		}
		if _, err := Apply(doc, SetMetadata{m.Disks}); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: written over: %v", text, err)
		}
	}
}

func TestSetMetadataRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		set  SetMetadata
	}{
		"no uuid":     {"<domain><name>n</name></domain>", SetMetadata{allKinds}},
		"a disk":      {"<disk><target dev='vda'/></disk>", SetMetadata{allKinds}},
		"no target":   {domain(""), SetMetadata{[]BoundDisk{{Volume: &Volume{"v"}}}}},
		"no kind":     {domain(""), SetMetadata{[]BoundDisk{{Target: "vda"}}}},
		"two kinds":   {domain(""), SetMetadata{[]BoundDisk{{Target: "vda", Volume: &Volume{}, Local: &Local{}}}}},
		"two entries": {domain(""), SetMetadata{[]BoundDisk{allKinds[0], allKinds[0]}}},
	} {
		if out, err := Apply(parse(t, []byte(c.text)), c.set); out != nil || !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, origin := range []string{"<disk>", "text", "<disk/><disk/>", "<disk/></dh:origin><dh:origin><disk/>"} {
		bad := SetMetadata{[]BoundDisk{{Target: "vda", Local: &Local{}, Origin: []byte(origin)}}}
		if _, err := Apply(parse(t, []byte(domain(""))), bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("origin %s: %v", origin, err)
		}
	}
}

func TestMetadataDisk(t *testing.T) {
	var none *Metadata
	if _, ok := none.Disk("vda"); ok {
		t.Error("no metadata has a disk")
	}
	m := &Metadata{Disks: allKinds}
	for i, kind := range []string{"local", "volume", "quorum", "image", "thin", "local", "local"} {
		b, ok := m.Disk(allKinds[i].Target)
		if !ok || b.Kind() != kind {
			t.Errorf("%s: %v %s", allKinds[i].Target, ok, b.Kind())
		}
	}
}

func TestRestoreOriginRefuses(t *testing.T) {
	bind := func(origin string) string {
		return strings.Replace(domain("<metadata><disks xmlns='urn:diskhook:1' domain='d'><disk target='vda'><volume id='v'/>"+origin+"</disk></disks></metadata>"),
			"<memory>", "<devices><disk><source file='/now'/><target dev='vda'/></disk></devices><memory>", 1)
	}
	for text, want := range map[string]error{
		domain(""):                             ErrNotFound,
		bind(""):                               ErrNotFound,
		bind("<origin><x xmlns=''/></origin>"): ErrMetadata,
		bind("<origin><a xmlns=''/><b xmlns=''/></origin>"): ErrMalformed,
	} {
		doc := parse(t, []byte(text))
		if out, err := Apply(doc, RestoreOrigin{"vda"}); out != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	out, err := Apply(parse(t, []byte(bind("<origin><disk xmlns='' type='block'><source dev='/then'/></disk></origin>"))), RestoreOrigin{"vda"})
	if err != nil {
		t.Fatal(err)
	}
	if d, _ := out.Disk("vda"); d.Type != "block" || d.Source.Path() != "/then" {
		t.Errorf("restored to %+v", d)
	}
}

func TestVDSM(t *testing.T) {
	doc := parse(t, fixture(t, "vdsm-mixed.in.xml"))
	info, ok := doc.VDSM()
	const pool = "59c4c3ee-0205-0227-0229-000000000155"
	want := VDSMInfo{
		Custom: map[string]string{"localdisk": "lvm"},
		Disks: map[string]VDSMDevice{
			"sdc": {PoolID: pool, DomainID: "f3f6e278-47a1-4048-b9a5-0cf4d6ba455f", ImageID: "11111111-1111-4111-8111-111111111111", VolumeID: "22222222-2222-4222-8222-222222222222"},
			"sda": {PoolID: pool, DomainID: "f3f6e278-47a1-4048-b9a5-0cf4d6ba455f", ImageID: "c9865ca8-f6d2-4363-bec2-af870a87a819", VolumeID: "1dfad482-c65c-436c-aa59-87e020b63302"},
			"sdb": {PoolID: pool, DomainID: "a67a8671-05fc-4e42-b147-f7d3a0496cd6", ImageID: "b07a37de-95d6-4682-84cd-c8c9201327e3", VolumeID: "b3335e60-6d27-46e0-bed8-50e75cca6786"},
			"sdd": {GUID: "20024f4005854000a", Managed: true},
			"sde": {RBD: "/run/vdsm/managedvolumes/fa728e08-2db4-4016-bfbb-bd75f2ee1735_876fa465-d92b-4070-833d-c5ec4331ceb5", Managed: true},
			"sdf": {GUID: "36001405b3b7829f14c1400d925eefebb"},
		},
	}
	if diff := cmp.Diff(want, info); !ok || diff != "" {
		t.Error(ok, diff)
	}
	if _, ok := parse(t, fixture(t, "libvirt-file.in.xml")).VDSM(); ok {
		t.Error("libvirt's domain taken for oVirt's")
	}
	for text, managed := range map[string]bool{"true": true, "True": true, "1": true, "false": false, "False": false, "0": false, "": false, " yes ": true} {
		doc := parse(t, []byte(domain("<metadata><v:vm xmlns:v='http://ovirt.org/vm/1.0'><v:device devtype='disk' name='vda'><v:managed type='bool'>"+text+
			"</v:managed><v:shared>exclusive</v:shared></v:device><v:device devtype='disk'/><v:device devtype='nic' name='n'/></v:vm></metadata>")))
		info, _ := doc.VDSM()
		if diff := cmp.Diff(map[string]VDSMDevice{"vda": {Managed: managed, Shared: "exclusive"}}, info.Disks); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}
