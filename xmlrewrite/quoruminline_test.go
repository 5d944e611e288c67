// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/beevik/etree"
	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

// domainOf is a domain of these disks, and of these children behind <devices>.
func domainOf(disks, more string) string {
	return "<domain type='kvm'>\n  <name>n</name>\n  <uuid>5e2d7f0a-0d1c-4b52-9f0e-3b1f6a2c9d10</uuid>\n  <devices>\n    " + disks + "\n  </devices>\n" + more + "</domain>\n"
}

func plainDisk(target, bus, content string) string {
	return fmt.Sprintf("<disk type='file' device='disk'>%s<target dev='%s' bus='%s'/></disk>", content, target, bus)
}

// arguments are the values of <qemu:commandline>, as libvirt reads them.
func arguments(t *testing.T, doc *Document) (all []string) {
	t.Helper()
	var domain struct {
		Args []struct {
			Value string `xml:"value,attr"`
		} `xml:"http://libvirt.org/schemas/domain/qemu/1.0 commandline>arg"`
	}
	if err := xml.Unmarshal(doc.Bytes(), &domain); err != nil {
		t.Fatal(err)
	}
	for _, a := range domain.Args {
		all = append(all, a.Value)
	}
	return all
}

// TestInlineQuorumNode looks at the whole node that QEMU is given.
func TestInlineQuorumNode(t *testing.T) {
	nbd := func(h Host) Layer {
		return Layer{Type: "network", Format: "raw", Source: Source{Type: "network", Protocol: "nbd", Name: "e<&>", Hosts: []Host{h}}}
	}
	q := QuorumDisk{Target: "vda", Threshold: 3, ReadPattern: "fifo", Replicas: []QuorumReplica{
		{Chain: []Layer{fileLayer("qcow2", "/srv/1"), fileLayer("raw", "/srv/1b")}, NodeName: "ignored"},
		{Chain: []Layer{fileLayer("qcow2", `/srv/it's "2"`), fileLayer("qcow2", "/srv/2b"), fileLayer("raw", "/srv/2c")}},
		{Chain: []Layer{nbd(Host{Name: "::1"})}, NodeName: "far"},
		{Chain: []Layer{nbd(Host{Transport: "unix", Socket: "/s"})}, Open: true},
	}}
	const driver = "<driver name='qemu' type='raw' cache='none' io='native' discard_no_unref='on'/>"
	doc := parse(t, []byte(domainOf(plainDisk("vda", "virtio", driver+"<source file='/was'/>"), "")))
	out, err := Apply(doc, InlineQuorum{Disks: []InlineDisk{{q, "db"}}})
	if err != nil {
		t.Fatal(err)
	}
	args := arguments(t, out)
	if len(args) != 2 || args[0] != "-blockdev" {
		t.Fatalf("arguments %q", args)
	}
	direct := `"cache":{"direct":true,"no-flush":false}`
	file := func(name, read string) string {
		return `{"driver":"file","filename":` + name + `,"aio":"native"` + read + `,` + direct + `}`
	}
	const ro = `,"read-only":true`
	want := `{"driver":"quorum","node-name":"db","vote-threshold":3,"read-pattern":"fifo","children":["libvirt-1-format",` +
		`{"driver":"qcow2","node-name":"db-2",` + direct + `,"file":` + file(`"/srv/it's \"2\""`, "") +
		`,"backing":{"driver":"qcow2"` + ro + `,` + direct + `,"file":` + file(`"/srv/2b"`, ro) +
		`,"backing":{"driver":"raw"` + ro + `,` + direct + `,"file":` + file(`"/srv/2c"`, ro) + `}}},` +
		`{"driver":"raw","node-name":"far",` + direct + `,"file":{"driver":"nbd","server":{"type":"inet","host":"::1","port":"10809"},"export":"e<&>",` + direct + `}},` +
		`{"driver":"raw","node-name":"db-4",` + direct + `,"file":{"driver":"nbd","server":{"type":"unix","path":"/s"},"export":"e<&>",` + direct + `}}]}`
	if args[1] != want || !json.Valid([]byte(args[1])) {
		t.Errorf("got\n%s\nwant\n%s", args[1], want)
	}
	d, _ := out.Disk("vda")
	if d.Type != "file" || d.Driver.Type != "qcow2" || d.Driver.Cache != "none" || d.Alias != "ua-diskhook-vda" || d.QuorumPath() != "/srv/1" || !d.Terminated ||
		!cmp.Equal(d.Chain, []Layer{fileLayer("raw", "/srv/1b")}) {
		t.Errorf("the disk is %+v", d)
	}
	nodes, ok := out.InlineNodes("vda")
	if !ok || !cmp.Equal(nodes, InlineNodes{"db", []string{"libvirt-1-format", "db-2", "far", "db-4"}}) {
		t.Errorf("nodes %+v", nodes)
	}
	if err := CheckInline(out, "vda"); err != nil {
		t.Error(err)
	}
}

func TestInlineQuorumRefuses(t *testing.T) {
	good := replicas("vda")
	second := func(r QuorumReplica) QuorumDisk {
		q := replicas("vda")
		q.Replicas[1] = r
		return q
	}
	network := func(s Source) QuorumDisk {
		s.Type = "network"
		return second(QuorumReplica{Chain: []Layer{{Type: "network", Format: "raw", Source: s}}})
	}
	rawFirst := replicas("vda")
	rawFirst.Replicas[0].Chain = rawFirst.Replicas[0].Chain[1:]
	over := replicas("vda")
	over.Threshold = 4
	host := []Host{{Name: "h"}}
	const plain = "<driver name='qemu' type='raw'/><source file='/a'/>"
	only := "only lower='export' takes it"
	for _, c := range []struct {
		q             QuorumDisk
		name, content string
		want          string
		kind          error
	}{
		{second(QuorumReplica{Chain: []Layer{{Type: "block", Format: "raw", Source: Source{Type: "block", Dev: "/dev/vg/lv"}}}}), "db", plain,
			"replica 2 is the block device /dev/vg/lv, which QEMU has no node for: " + only, ErrUnsupported},
		{network(Source{Protocol: "nbd", Hosts: host, HasAuth: true}), "db", plain, "replica 2 needs credentials, which libvirt does not pass on: " + only, ErrUnsupported},
		{network(Source{Protocol: "rbd", Hosts: host, Auth: &Auth{}}), "db", plain, "replica 2 needs credentials, which libvirt does not pass on: " + only, ErrUnsupported},
		{network(Source{Protocol: "nbd", Hosts: host, TLS: "yes"}), "db", plain, "replica 2 needs credentials, which libvirt does not pass on: " + only, ErrUnsupported},
		{network(Source{Protocol: "rbd", Hosts: host}), "db", plain, "replica 2 is reached over rbd: " + only, ErrUnsupported},
		{network(Source{Protocol: "nbd"}), "db", plain, "replica 2: an NBD source has one host", ErrUnsupported},
		{network(Source{Protocol: "nbd", Hosts: []Host{{Transport: "rdma"}}}), "db", plain, "replica 2: NBD over rdma", ErrUnsupported},
		{second(QuorumReplica{Chain: []Layer{fileLayer("vmdk", "/v")}}), "db", plain, "replica 2 has the format vmdk: raw and qcow2 are supported", ErrUnsupported},
		{second(QuorumReplica{Chain: []Layer{fileLayer("raw", "/v"), fileLayer("raw", "/w")}}), "db", plain, "replica 2: a raw image has nothing below it", ErrUnsupported},
		{second(QuorumReplica{Chain: []Layer{fileLayer("qcow2", "/v")}, Open: true}), "db", plain,
			"replica 2: its chain has no end: name every image, and <backingStore/> below the last one", ErrUnsupported},
		{second(QuorumReplica{Chain: []Layer{fileLayer("qcow2", "/v"), fileLayer("raw", "/w")}, Open: true}), "db", plain, "", nil},
		{rawFirst, "db", plain, "the first replica is raw, and libvirt and QEMU of this host decide what its block node is called", ErrUnsupported},
		{over, "db", plain, "threshold 4, but it has only 3 replicas", ErrQuorum},
		{good, "", plain, `"-2" is no node name`, ErrUnsupported},
		{good, strings.Repeat("n", 30), plain, `"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnn-2" is no node name`, ErrUnsupported},
		{good, "d,b", plain, `"d,b-2" is no node name`, ErrUnsupported},
		{good, "db", plain + "<readonly/>", "the disk is read-only", ErrUnsupported},
		{good, "db", plain + "<shareable/>", "the disk is shared with other domains", ErrUnsupported},
		{good, "db", plain + "<transient/>", "the disk is transient", ErrUnsupported},
		{good, "db", plain + "<encryption/>", "the disk is encrypted", ErrUnsupported},
		{good, "db", plain + "<mirror/>", "a block copy of the disk is under way", ErrUnsupported},
		{good, "db", "<driver copy_on_read='on'/>", "the disk has copy_on_read, which goes around the quorum", ErrUnsupported},
		{good, "db", "<driver cache='odd'/>", `cache "odd" is not known`, ErrUnsupported},
		{good, "db", plain + "<source file='/b'/>", "more than one <source>", ErrUnsupported},
	} {
		in := domainOf(plainDisk("vda", "virtio", c.content), "")
		doc := parse(t, []byte(in))
		_, err := Apply(doc, InlineQuorum{Disks: []InlineDisk{{c.q, c.name}}})
		switch {
		case c.kind == nil && err != nil:
			t.Errorf("%s: %v", c.content, err)
		case c.kind != nil && (err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "disk vda: ")):
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
		if got := string(doc.Bytes()); got != in {
			t.Errorf("the document changed: %s", got)
		}
	}
	for disks, want := range map[string]string{
		plainDisk("vda", "virtio", "") + "<disk type='file'><target dev='vdb'/></disk>":                                                 "disk vdb: cannot be rewritten: its <target> names no bus, by which libvirt sorts the disks",
		plainDisk("vda", "virtio", "") + plainDisk("vd9", "virtio", ""):                                                                 "disk vd9: cannot be rewritten: libvirt has no such target",
		plainDisk("vda", "virtio", "") + plainDisk("sda", "sd", ""):                                                                     "disk sda: cannot be rewritten: whether libvirt counts a disk of the bus sd depends on its version",
		plainDisk("vda", "virtio", "") + plainDisk("vdb", "virtio", "<source file='/x'><dataStore/></source>"):                          "disk vdb: cannot be rewritten: it keeps data in a second file, and whether libvirt counts that depends on its version",
		plainDisk("vda", "virtio", "") + "<disk type='quorum'><threshold value='2'/>" + two + "<target dev='vdb' bus='virtio'/></disk>": "disk vdb: cannot be rewritten: its quorum is not lowered yet",
		plainDisk("vdz", "virtio", "<source file='/x'><dataStore/></source>"):                                                           "disk vda: not in the domain XML",
		"<disk device='cdrom'><target dev='vda' bus='virtio'/></disk>":                                                                  "disk vda: cannot be rewritten: a cdrom is no disk that replicas can stand for",
		"<disk device='lun'><source dev='/x'/><target dev='vda' bus='scsi'/></disk>":                                                    "disk vda: cannot be rewritten: a lun is no disk that replicas can stand for",
		plainDisk("vda", "virtio", "") + strings.Repeat("<disk><target dev='vdb' bus='virtio'/></disk>", 4096):                          "cannot be rewritten: 4097 disks",
	} {
		if _, err := Apply(parse(t, []byte(domainOf(disks, ""))), InlineQuorum{Disks: []InlineDisk{{good, "db"}}}); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	// What is counted after the disk does not matter.
	before := plainDisk("vda", "virtio", "<source file='/x'><dataStore/></source>") + plainDisk("vdb", "virtio", "")
	good.Target = "vdb"
	if _, err := Apply(parse(t, []byte(domainOf(before, ""))), InlineQuorum{Disks: []InlineDisk{{good, "db"}}}); err != nil {
		t.Error(err)
	}
	twice := replicas("vdb")
	for i := range twice.Replicas {
		twice.Replicas[i].Chain = []Layer{fileLayer("raw", fmt.Sprint("/other/", i))}
	}
	doc := parse(t, []byte(domainOf(plainDisk("vda", "virtio", "")+plainDisk("vdb", "virtio", ""), "")))
	for name, want := range map[string]string{"db": "disk vdb: cannot be rewritten: the node name db is used by disk vda too", "db-2": "disk vdb: cannot be rewritten: the node name db-2 is used by disk vda too"} {
		_, err := Apply(doc, InlineQuorum{Disks: []InlineDisk{{replicas("vda"), "db"}, {twice, name}}, RawNode: RawNodeFormat})
		if err == nil || err.Error() != want {
			t.Error(err)
		}
	}
}

// TestInlineQuorumKeepsOperators: what was in <qemu:commandline> and
// <qemu:override> stays, with and after the quorum.
func TestInlineQuorumKeepsOperators(t *testing.T) {
	const ns = " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
	for _, more := range []string{
		"",
		"  <qemu:commandline" + ns + ">\n    <qemu:env name='a' value='b'/>\n  </qemu:commandline>\n",
		"  <qemu:commandline" + ns + ">\n    <!-- mine -->\n  </qemu:commandline>\n",
		"  <commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-blockdev'/><arg value='not JSON'/><arg value='-x'/></commandline>\n",
		"  <x:override xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'><x:device alias='ua-net'><x:frontend/></x:device></x:override>\n",
		"  <x:override xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'>\n    <x:device alias='ua-vda'>\n      <x:frontend>\n        <x:property name='p' type='string' value='v'/>\n      </x:frontend>\n    </x:device>\n  </x:override>\n",
		"  <qemu:commandline xmlns:qemu='urn:other'><qemu:arg value='-blockdev'/></qemu:commandline>\n",
	} {
		in := domainOf(plainDisk("vda", "virtio", "<driver name='qemu' type='raw'/><source file='/a'/>")+plainDisk("vdb", "virtio", "<alias name='ua-vdb'/>"), more)
		doc := parse(t, []byte(in))
		there, err := Apply(doc, append([]Rewriter{inlined(replicas("vda"))}, record(t, doc, "vda")...)...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(more) {
			if text := strings.TrimSpace(line); !strings.Contains(string(there.Bytes()), strings.TrimSuffix(strings.TrimSuffix(text, "</commandline>"), "</x:override>")) {
				t.Errorf("%s is gone from\n%s", text, there.Bytes())
			}
		}
		if err := CheckInline(parse(t, there.Bytes()), "vda"); err != nil {
			t.Errorf("%v in\n%s", err, there.Bytes())
		}
		back, err := Apply(parse(t, there.Bytes()), RemoveInline{"vda"}, RestoreOrigin{"vda"}, RemoveMetadata{})
		if err != nil || string(back.Bytes()) != in {
			t.Errorf("%v\n%s", err, Diff([]byte(in), back.Bytes(), "before", "after"))
		}
	}
	// A drive that an operator chose is not taken from him.
	mine := "  <x:override xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'><x:device alias='ua-vda'><x:frontend><x:property name='drive' type='string' value='mine'/></x:frontend></x:device></x:override>\n"
	in := domainOf(strings.Replace(plainDisk("vda", "virtio", ""), "</disk>", "<alias name='ua-vda'/></disk>", 1), mine)
	if _, err := Apply(parse(t, []byte(in)), inlined(replicas("vda"))); err == nil || !strings.Contains(err.Error(), "points ua-vda at mine already") {
		t.Error(err)
	}
	if out, err := Apply(parse(t, []byte(in)), RemoveInline{"vda"}); err != nil || string(out.Bytes()) != in {
		t.Error(err, string(out.Bytes()))
	}
	if _, err := Apply(parse(t, []byte(in)), RemoveInline{"vdz"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// TestInlineQuorumRenumbers: when another disk changes, the rewrite without any
// disk puts the number right, and until then CheckInline says so.
func TestInlineQuorumRenumbers(t *testing.T) {
	doc := parse(t, []byte(domainOf(plainDisk("vda", "virtio", "")+plainDisk("vdb", "virtio", "<source file='/b'/>")+plainDisk("vdc", "virtio", "<source file='/c'/>"), "")))
	b := replicas("vdb")
	for i := range b.Replicas {
		b.Replicas[i].Chain = []Layer{fileLayer("raw", fmt.Sprint("/b/", i))}
	}
	both, err := Apply(doc, InlineQuorum{Disks: []InlineDisk{{replicas("vda"), "db-a"}, {b, "db-b"}}, RawNode: RawNodeStorage})
	if err != nil {
		t.Fatal(err)
	}
	first := func(doc *Document, target string) string {
		nodes, _ := doc.InlineNodes(target)
		return nodes.Children[0]
	}
	if a, b := first(both, "vda"), first(both, "vdb"); a != "libvirt-3-format" || b != "libvirt-2-storage" {
		t.Fatal(a, b)
	}
	longer := both.Clone()
	if err := longer.EditDisk("vdc", func(e *etree.Element) error {
		e.CreateElement("backingStore").CreateAttr("type", "file")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]string{
		"vda": "disk vda: impossible quorum: its quorum db-a takes the node libvirt-3-format, but libvirt gives this disk the number 4",
		"vdb": "disk vdb: impossible quorum: its quorum db-b takes the node libvirt-2-storage, but libvirt gives this disk the number 3",
		"vdc": "disk vdc: impossible quorum: no <qemu:override> points it at a quorum of <qemu:commandline>, so the guest would use /c alone",
	} {
		if err := CheckInline(longer, target); err == nil || err.Error() != want || !errors.Is(err, ErrQuorum) {
			t.Error(err)
		}
	}
	right, err := Apply(longer, InlineQuorum{RawNode: RawNodeStorage})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := first(right, "vda"), first(right, "vdb"); a != "libvirt-4-format" || b != "libvirt-3-storage" || CheckInline(right, "vda") != nil || CheckInline(right, "vdb") != nil {
		t.Error(a, b)
	}
	if _, err := Apply(longer, InlineQuorum{}); err == nil {
		t.Error("the node of a raw image was named without knowing how")
	}
	if out, err := Apply(doc, InlineQuorum{}); err != nil || string(out.Bytes()) != string(doc.Bytes()) {
		t.Error("a domain without quorums changed", err)
	}
	// Another name for the same disk replaces the node.
	renamed, err := Apply(both, InlineQuorum{Disks: []InlineDisk{{replicas("vda"), "new"}}, RawNode: RawNodeStorage})
	if err != nil {
		t.Fatal(err)
	}
	if nodes, _ := renamed.InlineNodes("vda"); nodes.Quorum != "new" || strings.Contains(string(renamed.Bytes()), "db-a") {
		t.Errorf("%s", renamed.Bytes())
	}

	// In the XML of a start libvirt's own number counts.
	live := parse(t, []byte(strings.Replace(string(right.Bytes()), "<source file='/srv/1/top.qcow2'", "<source file='/srv/1/top.qcow2' index='9'", 1)))
	if err := CheckInline(live, "vda"); err == nil || !strings.Contains(err.Error(), "the number 9") {
		t.Error(err)
	}
}

// TestInlineQuorumNumber: where the disk stands in libvirt's own list, and what
// is behind it there. contrib/integration compares such domains with libvirt.
func TestInlineQuorumNumber(t *testing.T) {
	const quorum = "<disk type='file'><target dev='vdx' bus='virtio'/></disk>"
	deep := func(target, bus string, images int) string {
		chain := "<backingStore/>"
		for range images - 1 {
			chain = "<backingStore type='file'>" + chain + "</backingStore>"
		}
		return plainDisk(target, bus, chain)
	}
	for disks, want := range map[string]string{
		quorum: "1",
		deep("vda", "virtio", 3) + quorum + deep("vdz", "virtio", 3):                                                           "4",
		deep("vdz", "virtio", 3) + quorum + deep("vda", "virtio", 5):                                                           "4",
		deep("vdy", "virtio", 1) + deep("vdz", "virtio", 1) + deep("vdaa", "virtio", 1) + quorum:                               "4",
		deep("vdaa2", "virtio", 2) + quorum + deep("vdw", "virtio", 1):                                                         "3",
		deep("sda", "scsi", 2) + quorum + deep("sdb", "scsi", 4):                                                               "1",
		quorum + deep("sda", "scsi", 2) + deep("vdy", "virtio", 1) + deep("hda", "ide", 1):                                     "5",
		quorum + plainDisk("sda", "sata", "<source file='/x'/>") + "<disk device='cdrom'><target dev='hda' bus='ide'/></disk>": "3",
		quorum + "<disk type='vhostuser'><source type='unix' path='/v'/><target dev='vdy' bus='virtio'/></disk>":               "1",
	} {
		q := replicas("vdx")
		out, err := Apply(parse(t, []byte(domainOf(disks, ""))), InlineQuorum{Disks: []InlineDisk{{q, "db"}}})
		if err != nil {
			t.Error(err)
			continue
		}
		if nodes, _ := out.InlineNodes("vdx"); nodes.Children[0] != "libvirt-"+want+"-format" {
			t.Errorf("%s, not %s, in %s", nodes.Children[0], want, disks)
		}
	}
}
