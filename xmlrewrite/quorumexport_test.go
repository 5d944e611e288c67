// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"errors"
	"strings"
	"testing"

	. "diskhook/xmlrewrite"
)

const sharedMemory = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"

func TestExportQuorum(t *testing.T) {
	nbd, vhost := ExportQuorum{Target: "vda", Socket: "/run/q.sock", Name: "db"}, ExportQuorum{Target: "vda", Socket: "/run/v.sock", VhostUser: true}
	later := func(x ExportQuorum) ExportQuorum { x.Reconnect = 7; return x }
	queued := func(x ExportQuorum, n int) ExportQuorum { x.Queues = n; return x }
	at := func(x ExportQuorum, socket string) ExportQuorum { x.Socket = socket; return x }
	const source = "<source protocol='nbd' name='db'><host transport='unix' socket='/run/q.sock'/></source><target"
	const stop = " error_policy='stop' rerror_policy='stop'/>"
	for _, c := range []struct {
		x           ExportQuorum
		attrs, disk string
		want        string // a part of the result, or of the error
		kind        error
	}{
		{nbd, "", "<source file='/a'/>", "<disk type='network'><driver name='qemu' type='raw'" + stop + source, nil},
		{later(nbd), "", "", "<driver name='qemu' type='raw'" + stop + "<source protocol='nbd' name='db'><host transport='unix' socket='/run/q.sock'/><reconnect delay='7'/></source>", nil},
		{nbd, "", "<driver name='qemu' type='qcow2' cache='none' io='native' copy_on_read='on' iothread='1' discard='unmap'/>", "<driver name='qemu' type='raw' cache='none' iothread='1' discard='unmap'" + stop + source, nil},
		{nbd, "", "<driver error_policy='report'/>", "<driver error_policy='report' type='raw'/>" + source, nil},
		{nbd, "", "<driver rerror_policy='ignore'/>", "<driver rerror_policy='ignore' type='raw'/>" + source, nil},
		{nbd, " threshold='1' read_pattern='fifo'", "<driver type='quorum' blkverify='off' read_pattern='fifo'/>" + two, "<disk type='network'><driver type='raw'" + stop + source, nil},
		{nbd, "", "<auth username='u'/><source/>", "<driver name='qemu' type='raw'" + stop + source, nil},
		{at(nbd, "run/q"), "", "", `"run/q" is no clean absolute path`, ErrUnsupported},
		{at(nbd, "/run/../q"), "", "", `"/run/../q" is no clean absolute path`, ErrUnsupported},
		{nbd, " device='cdrom'", "", "a cdrom is no disk that replicas can stand for", ErrUnsupported},
		{nbd, "", "<shareable/>", "the disk is shared with other domains, and each would write to the replicas for itself", ErrUnsupported},
		{nbd, "", "<driver/><driver/>", "more than one <driver>", ErrUnsupported},
		{ExportQuorum{Target: "vdz", Socket: "/s"}, "", "", "disk vdz: not in the domain XML", ErrNotFound},

		{later(vhost), "", "<driver name='qemu' type='qcow2' cache='none' io='native' error_policy='stop' iothread='1' queues='2' event_idx='on'><metadata_cache/><iothreads/></driver>",
			"<disk type='vhostuser'><driver name='qemu' type='raw' queues='1' event_idx='on'/><source type='unix' path='/run/v.sock'><reconnect enabled='yes' timeout='7'/></source><target", nil},
		{vhost, " snapshot='no'", "<source file='/a'/><backingStore/>", "<disk snapshot='no' type='vhostuser'><driver name='qemu' type='raw' queues='1'/><source type='unix' path='/run/v.sock'/><target", nil},
		{queued(vhost, 4), "", "<driver queues='3'/>", "<driver queues='3' type='raw'/>", nil},
		{queued(vhost, 4), "", "<driver queues='5'/>", "<driver queues='4' type='raw'/>", nil},
		{queued(vhost, 4), "", "<driver/>", "<driver type='raw' queues='4'/>", nil},
		{vhost, " snapshot='external'", "", "vhost-user has no snapshots, and the disk asks for external ones", ErrUnsupported},
		{vhost, "", "<serial>x</serial>", "vhost-user has no <serial>, which the disk has", ErrUnsupported},
		{vhost, "", "<iotune/>", "vhost-user has no <iotune>, which the disk has", ErrUnsupported},
		{vhost, "", "<readonly/>", "vhost-user has no <readonly>, which the disk has", ErrUnsupported},
	} {
		in := domainOf("<disk"+c.attrs+">"+c.disk+"<target dev='vda' bus='virtio'/></disk>", sharedMemory)
		out, err := Apply(parse(t, []byte(in)), c.x)
		switch {
		case c.kind == nil && err != nil:
			t.Errorf("%s: %v", c.disk, err)
		case c.kind == nil && !strings.Contains(string(out.Bytes()), c.want):
			t.Errorf("%s is not in\n%s", c.want, out.Bytes())
		case c.kind != nil && (err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	for in, want := range map[string]string{
		domainOf("<disk><target dev='vda' bus='virtio'/></disk>", ""):         "vhost-user needs memory that is shared: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
		domainOf("<disk><target dev='vda' bus='scsi'/></disk>", sharedMemory): `vhost-user has the bus virtio, not "scsi"`,
	} {
		if _, err := Apply(parse(t, []byte(in)), vhost); err == nil || err.Error() != "disk vda: cannot be rewritten: "+want {
			t.Error(err)
		}
	}
}

// TestExportQuorumLive: what libvirt adds while a domain runs is no difference.
func TestExportQuorumLive(t *testing.T) {
	const live = "<disk type='network' device='disk'><driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>" +
		"<source protocol='nbd' name='db' tls='no' index='1'>\n <host transport='unix' socket='/s'/>\n</source><target dev='vda' bus='virtio'/></disk>"
	x := ExportQuorum{Target: "vda", Socket: "/s", Name: "db"}
	for text, same := range map[string]bool{
		live: true,
		strings.Replace(live, "tls='no'", "tls='yes'", 1):                  false,
		strings.Replace(live, "'/s'", "'/t'", 1):                           false,
		strings.Replace(live, "<host", "<reconnect delay='1'/><host", 1):   false,
		strings.Replace(live, "<target", "<backingStore/><target", 1):      false,
		strings.Replace(live, "type='network'", "type='network' a='b'", 1): true,
	} {
		out, err := Apply(parse(t, []byte(text)), x)
		if err != nil || (string(out.Bytes()) == text) != same {
			t.Errorf("%s: %v\n%s", text, err, out.Bytes())
		}
	}
}

func TestSharedMemory(t *testing.T) {
	cells := func(attrs ...string) string {
		text := "<cpu><numa>"
		for _, a := range attrs {
			text += "<cell id='0' cpus='0' memory='1' " + a + "/>"
		}
		return text + "</numa></cpu>"
	}
	for more, want := range map[string]bool{
		"":           false,
		sharedMemory: true,
		"<memoryBacking><hugepages/></memoryBacking>":                                false,
		"<memoryBacking><access mode='private'/></memoryBacking>":                    false,
		cells("memAccess='shared'"):                                                  true,
		cells("memAccess='shared'", ""):                                              false,
		sharedMemory + cells("memAccess='private'"):                                  false,
		sharedMemory + cells("", "memAccess='shared'"):                               true,
		sharedMemory + "<cpu/>":                                                      true,
		sharedMemory + cells():                                                       true,
		"<x:memoryBacking xmlns:x='urn:x'><access mode='shared'/></x:memoryBacking>": false,
	} {
		if got := SharedMemory(parse(t, []byte(domainOf("", more)))); got != want {
			t.Errorf("%s: %v", more, got)
		}
	}
}

func TestQuorumPath(t *testing.T) {
	for disk, want := range map[string]string{
		"<disk type='file'><source file='/a'/>": "/a",
		"<disk type='block'><source dev='/b'/>": "/b",
		"<disk type='network'><source protocol='nbd' name='x'><host transport='unix' socket='/s'/></source>":        "/s",
		"<disk type='network'><source protocol='nbd' name='x'><host name='h' port='1'/></source>":                   "",
		"<disk type='network'><source protocol='nbd'><host transport='unix' socket='/s'/><host name='h'/></source>": "",
		"<disk type='network'><source protocol='rbd' name='x'><host transport='unix' socket='/s'/></source>":        "",
		"<disk type='vhostuser'><source type='unix' path='/v'/>":                                                    "/v",
		"<disk type='quorum'>" + two:        "/a",
		"<disk type='quorum'>":              "",
		"<disk type='file' device='cdrom'>": "",
	} {
		d, _ := parse(t, []byte(disk+"<target dev='vda'/></disk>")).Disk("vda")
		if got := d.QuorumPath(); got != want {
			t.Errorf("%s: %q", disk, got)
		}
	}
}

func TestRawNode(t *testing.T) {
	for versions, want := range map[[2]int]string{
		{9_000_000, 7_002_000}: RawNodeFormat, {11_003_000, 8_002_010}: RawNodeFormat, {9_000_000, 9_000_000}: RawNodeFormat,
		{10_001_000, 9_000_000}: RawNodeStorage, {12_005_000, 10_000_013}: RawNodeStorage, {0, 0}: RawNodeFormat,
	} {
		if got := RawNode(versions[0], versions[1]); got != want {
			t.Errorf("%v: %s", versions, got)
		}
	}
}
