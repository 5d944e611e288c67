// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

// TestSources reads each type of source that libvirt has, and some that it has
// not.
func TestSources(t *testing.T) {
	doc := parse(t, fixture(t, "sources.xml"))
	qemu := func(format string) Driver { return Driver{Name: "qemu", Type: format} }
	want := []*Disk{
		{Target: "vda", Bus: "virtio", Device: "disk", Type: "file", Encrypted: true,
			Source: Source{Type: "file", File: "/srv/a.qcow2", StartupPolicy: "requisite", Index: "4", HasSlices: true, HasEncryption: true}},
		{Target: "sda", Bus: "scsi", Device: "lun", Type: "block", Driver: qemu("raw"), Shareable: true,
			Source: Source{Type: "block", Dev: "/dev/mapper/lun", HasReservations: true}},
		{Target: "fda", Device: "floppy", Type: "dir", Driver: qemu("fat"), ReadOnly: true,
			Source: Source{Type: "dir", Dir: "/srv/floppy"}},
		{Target: "vdb", Device: "disk", Type: "network",
			Source: Source{Type: "network", Protocol: "nbd", Name: "q0", Hosts: []Host{{Transport: "unix", Socket: "/run/q.sock"}}}},
		{Target: "vdc", Device: "disk", Type: "network",
			Source: Source{Type: "network", Protocol: "https", Name: "image.iso", Hosts: []Host{{Name: "example.org", Port: "443"}}, HasCookies: true}},
		{Target: "vdd", Device: "disk", Type: "network",
			Source: Source{Type: "network", Protocol: "iscsi", Name: "iqn.2013-07.org.example:pool/1", Hosts: []Host{{Name: "10.0.0.1"}}, Initiator: "iqn.x", HasAuth: true}},
		{Target: "vde", Device: "disk", Type: "volume", Source: Source{Type: "volume", Pool: "p", Volume: "v", Mode: "direct"}},
		{Target: "vdf", Device: "disk", Type: "nvme", Source: Source{Type: "nvme", Namespace: "1", Address: "0000:01:00.2"}},
		{Target: "vdg", Device: "disk", Type: "vhostuser", Source: Source{Type: "vhostuser", Socket: "/run/vu.sock"}},
		{Target: "vdh", Device: "disk", Type: "vhostvdpa", Source: Source{Type: "vhostvdpa", Dev: "/dev/vhost-vdpa-0"}},
		{Target: "vdi", Device: "disk", Type: "quorum", Driver: qemu("quorum"), Source: Source{Type: "quorum"},
			Chain: []Layer{{Type: "file", Format: "qcow2", Source: Source{Type: "file", File: "/r1.qcow2"}}}},
		{Target: "vdj", Device: "disk", Type: "holographic", Source: Source{Type: "holographic"}},
		{Target: "sdb", Bus: "sata", Device: "cdrom", Type: "file", ReadOnly: true, Source: Source{Type: "file"}},
		{Target: "vdk", Device: "disk", Type: "file", Mirror: true, Transient: true,
			Source: Source{Type: "file", File: "/srv/top.qcow2", FDGroup: "fds", HasDataStore: true},
			Chain:  []Layer{{Type: "nvme", Format: "raw", Source: Source{Type: "nvme", Namespace: "1", Address: "0000:02:00.0"}}}},
	}
	if diff := cmp.Diff(want, doc.Disks()); diff != "" {
		t.Error(diff)
	}
	for _, w := range want {
		if d, ok := doc.Disk(w.Target); !ok || !cmp.Equal(d, w) {
			t.Errorf("Disk(%s) differs from Disks: %v", w.Target, ok)
		}
	}
	if d, ok := doc.Disk("nope"); ok {
		t.Errorf("found %+v", d)
	}
}

func TestSourcePathAndString(t *testing.T) {
	for _, c := range []struct {
		source       Source
		path, string string
	}{
		{Source{Type: "file", File: "/f", Dev: "/x"}, "/f", "/f"},
		{Source{Type: "block", Dev: "/dev/b", File: "/x"}, "/dev/b", "/dev/b"},
		{Source{Type: "dir", Dir: "/d"}, "/d", "/d"},
		{Source{Type: "file"}, "", "no medium"},
		{Source{Type: "network", Protocol: "rbd", Name: "p/i"}, "", "rbd:p/i"},
		{Source{Type: "volume", Pool: "p", Volume: "v"}, "", "volume p/v"},
		{Source{Type: "nvme", Address: "0000:01:00.0", Namespace: "1"}, "", "nvme 0000:01:00.0 namespace 1"},
		{Source{Type: "vhostuser", Socket: "/s"}, "", "vhost-user /s"},
		{Source{Type: "vhostvdpa", Dev: "/dev/v"}, "", "vhost-vdpa /dev/v"},
		{Source{Type: "other"}, "", "source of type other"},
	} {
		if c.source.Path() != c.path || c.source.String() != c.string {
			t.Errorf("%+v: %q, %q", c.source, c.source.Path(), c.source.String())
		}
	}
}

func TestReadDisk(t *testing.T) {
	doc := parse(t, []byte(`<domain><devices>
<disk xmlns:o="urn:other">
  <o:source file='/trap'/><undeclared:source file='/trap'/>
  <driver name='qemu' type='qcow2' cache='none' io='native' error_policy='stop' rerror_policy='report' discard='unmap'
          detect_zeroes='on' copy_on_read='on' iothread='2' queues='4'><metadata_cache/><iothreads/></driver>
  <source o:file='/trap' file='/first&#10;line
with space'/><source file='/second'/>
  <target dev='vda'/><serial>a<!-- x -->b<![CDATA[c]]></serial><alias name='ua-1'/>
  <backingStore type='file'><format type='raw'/><source file='/base'><encryption/></source>
    <backingStore><source file='/never'/></backingStore></backingStore>
</disk>
<disk><target/><target dev='vdd'/></disk>
<disk xmlns='urn:other'><source file='/x'/><target dev='vdb'/></disk>
</devices><disk><target dev='vdc'/></disk></domain>`))
	want := []*Disk{{
		Target: "vda", Serial: "abc", Alias: "ua-1", Device: "disk", Type: "file", Encrypted: true,
		Driver: Driver{Name: "qemu", Type: "qcow2", Cache: "none", IO: "native", ErrorPolicy: "stop", ReadErrorPolicy: "report", Discard: "unmap",
			DetectZeroes: "on", CopyOnRead: "on", IOThread: "2", Queues: "4", HasMetadataCache: true, HasIOThreadQueues: true},
		Source:     Source{Type: "file", File: "/first\nline with space"},
		Chain:      []Layer{{Type: "file", Format: "raw", Source: Source{Type: "file", File: "/base", HasEncryption: true}}},
		Terminated: true,
	}, {Device: "disk", Type: "file", Source: Source{Type: "file"}}}
	if diff := cmp.Diff(want, doc.Disks()); diff != "" {
		t.Error(diff)
	}
	if d, ok := doc.Disk("vdd"); ok {
		t.Errorf("found by its second target: %+v", d)
	}
}

func TestNameAndUUID(t *testing.T) {
	for text, want := range map[string][2]string{
		"<domain><name> a &amp; b<!-- --> </name><name>x</name><uuid>\n69B6B942b5bf4740bb956752FFBD3BCF </uuid></domain>": {" a & b ", "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"},
		"<domain><uuid>not a uuid</uuid></domain>":                             {"", "not a uuid"},
		"<domain><n:name xmlns:n='urn:x'>x</n:name></domain>":                  {"", ""},
		"<disk><name>x</name></disk>":                                          {"", ""},
		"<domain xmlns='urn:x'><name>x</name></domain>":                        {"", ""},
		"<domain><devices><name>x</name></devices><name>right</name></domain>": {"right", ""},
	} {
		doc := parse(t, []byte(text))
		if got := [2]string{doc.Name(), doc.UUID()}; got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestRoot(t *testing.T) {
	for text, want := range map[string]string{"<domain/>": "domain", "<disk/>": "disk", "<domain xmlns='u'/>": "", "<domainsnapshot><domain/></domainsnapshot>": "domainsnapshot"} {
		doc := parse(t, []byte(text))
		if got := doc.Root(); got != want {
			t.Errorf("%s: %q", text, got)
		}
		if n := len(doc.Disks()); (n == 1) != (want == "disk") {
			t.Errorf("%s: %d disks", text, n)
		}
	}
}
