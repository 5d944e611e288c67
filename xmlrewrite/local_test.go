// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	. "diskhook/xmlrewrite"
)

// TestLocalDiskRefuses lists what a local copy cannot stand for.
func TestLocalDiskRefuses(t *testing.T) {
	const source = "<source file='/a'/>"
	for _, c := range []struct{ name, attrs, content, want string }{
		{"no medium", "", "", "disk vda: cannot be rewritten: the drive has no medium"},
		{"LUN", "device='lun'", source, "disk vda: cannot be rewritten: a LUN passed through has no local copy"},
		{"mirror", "", source + "<mirror/>", "disk vda: cannot be rewritten: a block copy of the disk is under way"},
		{"encryption of the disk", "", source + "<encryption/>", "disk vda: cannot be rewritten: the disk is encrypted"},
		{"encryption of the source", "", "<source file='/a'><encryption/></source>", "disk vda: cannot be rewritten: the disk is encrypted"},
		{"encryption below", "", source + "<backingStore type='file'><source file='/b'><encryption/></source></backingStore>", "disk vda: cannot be rewritten: the disk is encrypted"},
		{"shareable", "", source + "<shareable/>", "disk vda: cannot be rewritten: the disk is shared with other domains"},
		{"transient", "", source + "<transient/>", "disk vda: cannot be rewritten: the disk is transient"},
		{"slices", "", "<source file='/a'><slices/></source>", "disk vda: cannot be rewritten: its source is a slice of an image"},
		{"data store", "", "<source file='/a'><dataStore/></source>", "disk vda: cannot be rewritten: its source keeps its data in a second file"},
		{"reservations", "", "<source file='/a'><reservations/></source>", "disk vda: cannot be rewritten: its source has persistent reservations"},
		{"cookies", "", "<source file='/a'><cookies/></source>", "disk vda: cannot be rewritten: its source has cookies, which are secrets"},
		{"descriptors", "", "<source file='/a' fdgroup='g'/>", "disk vda: cannot be rewritten: its source is an open descriptor"},
		{"two sources", "", source + source, "disk vda: cannot be rewritten: more than one <source>"},
		{"quorum", "type='quorum'", source + "<backingStore/><backingStore/>", "disk vda: cannot be rewritten: more than one <backingStore>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := fmt.Sprintf("<domain><devices><disk %s>%s<target dev='vda'/></disk></devices></domain>", c.attrs, c.content)
			doc := parse(t, []byte(in))
			out, err := Apply(doc, LocalDisk{Target: "vda", Path: "/copy"})
			if out != nil || err == nil || err.Error() != c.want || !errors.Is(err, ErrUnsupported) {
				t.Errorf("got %v", err)
			}
			if got := string(doc.Bytes()); got != in {
				t.Errorf("the document changed: %s", got)
			}
		})
	}
}

func TestLocalDiskOptions(t *testing.T) {
	const in = "<domain><devices><disk><source file='/a'/><target dev='vda'/></disk><disk><target dev='vdb'/></disk><disk><target dev='vdb'/></disk></devices></domain>"
	for _, c := range []struct {
		l    LocalDisk
		want string // a part of the result, or of the error
		err  error
	}{
		{LocalDisk{Target: "vda", Path: "/c"}, "<disk type='file'><driver name='qemu' type='raw' cache='none' io='threads'/><source file='/c'/><target", nil},
		{LocalDisk{Target: "vda", Path: "/c", Block: true}, "<disk type='block'><driver name='qemu' type='raw' cache='none' io='native'/><source dev='/c'/><target", nil},
		{LocalDisk{Target: "vda", Path: "/c", Block: true, Cache: "directsync"}, "cache='directsync' io='native'", nil},
		{LocalDisk{Target: "vda", Path: "/c", Block: true, Cache: "unsafe"}, "cache='unsafe' io='threads'", nil},
		{LocalDisk{Target: "vda", Path: "/c", IO: "native"}, "cache='none' io='native'", nil},
		{LocalDisk{Target: "vda", Path: "/c", Format: "qcow2"}, "type='qcow2'", nil},
		{LocalDisk{Target: "vda", Path: "/it's <a> \"b\" & c\n"}, "<source file='/it&apos;s &lt;a&gt; &quot;b&quot; &amp; c&#10;'/>", nil},
		{LocalDisk{Target: "vda", Path: "/c", IO: "native", Cache: "writeback"}, "io native needs cache none or directsync, not writeback", ErrUnsupported},
		{LocalDisk{Target: "vda", Path: ""}, "no clean absolute path", ErrUnsupported},
		{LocalDisk{Target: "vda", Path: "relative"}, "no clean absolute path", ErrUnsupported},
		{LocalDisk{Target: "vda", Path: "/a/../b"}, "no clean absolute path", ErrUnsupported},
		{LocalDisk{Target: "vda", Path: "/nul\x00"}, "character U+0000 is not allowed", ErrMalformed},
		{LocalDisk{Target: "vda", Path: "/latin\xe9"}, "not UTF-8", ErrMalformed},
		{LocalDisk{Target: "vdz", Path: "/c"}, "disk vdz: not in the domain XML", ErrNotFound},
		{LocalDisk{Target: "", Path: "/c"}, "not in the domain XML", ErrNotFound},
		{LocalDisk{Target: "vdb", Path: "/c"}, "disk vdb: cannot be rewritten: two disks have this target", ErrUnsupported},
	} {
		doc := parse(t, []byte(in))
		out, err := Apply(doc, c.l)
		if !errors.Is(err, c.err) {
			t.Errorf("%+v: error %v", c.l, err)
			continue
		}
		got := fmt.Sprint(err)
		if err == nil {
			got = string(out.Bytes())
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s", c.l, got)
		}
	}
}

// TestLocalDiskDropsWhatOnlyQcow2Has: libvirt refuses these with raw.
func TestLocalDiskDropsWhatOnlyQcow2Has(t *testing.T) {
	const in = "<disk><driver discard='unmap' discard_no_unref='on'><metadata_cache><max_size>1</max_size></metadata_cache></driver><source file='/a'/><target dev='vda'/></disk>"
	for format, want := range map[string]string{
		"raw":   "<disk type='file'><driver discard='unmap' type='raw' cache='none' io='threads'/><source file='/c'/><target dev='vda'/></disk>",
		"qcow2": "<disk type='file'><driver discard='unmap' discard_no_unref='on' type='qcow2' cache='none' io='threads'><metadata_cache><max_size>1</max_size></metadata_cache></driver><source file='/c'/><target dev='vda'/></disk>",
	} {
		out, err := Apply(parse(t, []byte(in)), LocalDisk{Target: "vda", Path: "/c", Format: format})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(out.Bytes()); got != want {
			t.Errorf("%s:\n%s", format, got)
		}
	}
}
