// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

// seedElement is the element as it was proposed to libvirt, which is no XML.
const seedElement = `<disk type='quorum' device='disk'>
  <driver name='qemu' type='quorum'/>
  <threshold value=2/>
  <backingStore type='file'>
    <format type='qcow2'/>
    <source file='/var/lib/libvirt/images/file1.qcow2'/>
  <backingStore type='file'>
    <format type='qcow2'/>
    <source file='/var/lib/libvirt/images/file2.qcow2'/>
  <target dev='vda' bus='virtio'/>`

// TestQuorumNotWellFormed: what is wrong with that element is said in one line.
func TestQuorumNotWellFormed(t *testing.T) {
	quoted := strings.Replace(seedElement, "value=2", "value='2'", 1)
	for text, want := range map[string]string{
		seedElement:          "malformed XML: line 3: value=2 has no quotes: write value='2'",
		quoted:               "malformed XML: line 10: the text ends inside element backingStore, opened in line 7",
		quoted + "\n</disk>": "malformed XML: line 11: element backingStore, opened in line 7, is not closed before </disk>",
		"<a b = c d='e'/>":   "malformed XML: line 1: b=c has no quotes: write b='c'",
		"<a b=\"1\" c=%3>":   "malformed XML: line 1: c=%3 has no quotes: write c='%3'",
		"<a b=<c/>":          "malformed XML: line 1: unquoted or missing attribute value in element",
		"<a b>":              "malformed XML: line 1: attribute name without = in element",
		"<a b=":              "malformed XML: line 1: unexpected EOF",
		"<" + strings.Repeat("a", 500) + " b=" + strings.Repeat("1", 500) + "/>": "malformed XML: line 1: b=" + strings.Repeat("1", 80) + "… has no quotes: write b='" + strings.Repeat("1", 80) + "…'",
	} {
		if _, err := Parse([]byte(text)); err == nil || err.Error() != want || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", text, err)
		}
	}
	closed := strings.Replace(quoted, ".qcow2'/>\n", ".qcow2'/></backingStore>\n", 2) + "</disk>"
	q, ok, err := parse(t, []byte(closed)).Quorum("vda")
	if err != nil || !ok || q.Check() != nil || len(q.Replicas) != 2 || q.Threshold != 2 {
		t.Errorf("once it is well-formed: %+v %v %v", q, ok, err)
	}
}

func store(content string) string { return "<backingStore type='file'>" + content + "</backingStore>" }

func image(path string) string { return "<format type='raw'/><source file='" + path + "'/>" }

var two = store(image("/a")) + store(image("/b"))

func quorumDisk(attrs, content string) string {
	return fmt.Sprintf("<disk type='quorum'%s>%s<target dev='vda'/></disk>", attrs, content)
}

// TestQuorumSpellings: several spellings say the same.
func TestQuorumSpellings(t *testing.T) {
	plain := QuorumDisk{Target: "vda", Threshold: 2, Replicas: []QuorumReplica{
		{Chain: []Layer{fileLayer("raw", "/a")}, Open: true}, {Chain: []Layer{fileLayer("raw", "/b")}, Open: true},
	}}
	fifo, blk := plain, plain
	fifo.ReadPattern, blk.Blkverify = "fifo", true
	for text, want := range map[string]QuorumDisk{
		quorumDisk("", "<threshold value='2'/>"+two):                                                           plain,
		quorumDisk("", two+"<threshold value='2'/><driver name='qemu' type='quorum'/>"):                        plain,
		quorumDisk(" threshold='2'", two):                                                                      plain,
		quorumDisk("", "<driver type='quorum' threshold='2'/>"+two):                                            plain,
		quorumDisk(" threshold='2'", "<driver threshold='2'/><threshold value='2'/>"+two):                      plain,
		quorumDisk(" threshold='2'", "<driver read_pattern='quorum' blkverify='off'/>"+two):                    plain,
		quorumDisk(" threshold='2' read_pattern='fifo'", "<driver read_pattern='fifo' blkverify='no'/>"+two):   fifo,
		quorumDisk(" threshold='2'", "<driver blkverify='on'/>"+two):                                           blk,
		quorumDisk(" threshold='2' blkverify='yes'", two):                                                      blk,
		quorumDisk(" xmlns:x='urn:x' x:threshold='3' threshold='2'", "<x:backingStore/><x:threshold/>"+two):    plain,
		"<disk type='file'><driver/><target dev='vda'/></disk>":                                                {},
		"<disk type='block'><source dev='/a'/><backingStore/><threshold value='2'/><target dev='vda'/></disk>": {},
	} {
		q, ok, err := parse(t, []byte(text)).Quorum("vda")
		if err != nil || ok != (want.Target != "") {
			t.Errorf("%s: %v %v", text, ok, err)
		} else if ok && !cmp.Equal(*q, want) {
			t.Errorf("%s:\n%s", text, cmp.Diff(want, *q))
		}
	}
}

// TestQuorumSources: what a replica lies on is read, and written, with all that
// reaching it takes.
func TestQuorumSources(t *testing.T) {
	const disk = `<disk type='quorum'><driver type='quorum'/><threshold value='2'/>` +
		`<backingStore type='network' nodename='far'><format type='raw'/><source protocol='rbd' name='pool/a'><host name='mon1' port='6789'/><host name='mon2'/><snapshot name='s'/><config file='/etc/ceph.conf'/><auth username='u'><secret type='ceph' uuid='2a5b08e4-3dca-4ff9-9a1d-40389758d081'/></auth></source><backingStore/></backingStore>` +
		`<backingStore type='network'><format type='raw'/><source protocol='iscsi' name='iqn.x/1'><host name='h' port='3260'/><auth username='u'><secret type='iscsi' usage='s'/></auth><initiator><iqn name='iqn.me'/></initiator></source></backingStore>` +
		`<backingStore type='network'><format type='qcow2'/><source protocol='nbd' name='e' tls='yes'><host transport='unix' socket='/s'/></source><backingStore type='block'><format type='raw'/><source dev='/dev/b'/><backingStore/></backingStore></backingStore>` +
		`<backingStore type='network'><format type='raw'/><source protocol='https' name='e' query='a=b'><host name='h'/></source></backingStore>` +
		`<target dev='vda'/></disk>`
	doc := parse(t, []byte(disk))
	q, _, err := doc.Quorum("vda")
	if err != nil || q.Check() != nil {
		t.Fatal(err, q.Check())
	}
	want := []QuorumReplica{
		{NodeName: "far", Chain: []Layer{{Type: "network", Format: "raw", Source: Source{Type: "network", Protocol: "rbd", Name: "pool/a",
			Hosts: []Host{{Name: "mon1", Port: "6789"}, {Name: "mon2"}}, Snapshot: "s", Config: "/etc/ceph.conf", HasAuth: true,
			Auth: &Auth{Username: "u", Type: "ceph", UUID: "2a5b08e4-3dca-4ff9-9a1d-40389758d081"}}}}},
		{Open: true, Chain: []Layer{{Type: "network", Format: "raw", Source: Source{Type: "network", Protocol: "iscsi", Name: "iqn.x/1",
			Hosts: []Host{{Name: "h", Port: "3260"}}, Initiator: "iqn.me", HasAuth: true, Auth: &Auth{Username: "u", Type: "iscsi", Usage: "s"}}}}},
		{Chain: []Layer{{Type: "network", Format: "qcow2", Source: Source{Type: "network", Protocol: "nbd", Name: "e", TLS: "yes",
			Hosts: []Host{{Transport: "unix", Socket: "/s"}}}}, {Type: "block", Format: "raw", Source: Source{Type: "block", Dev: "/dev/b"}}}},
		{Open: true, Chain: []Layer{{Type: "network", Format: "raw", Source: Source{Type: "network", Protocol: "https", Name: "e", Query: "a=b", Hosts: []Host{{Name: "h"}}}}}},
	}
	if diff := cmp.Diff(want, q.Replicas); diff != "" {
		t.Fatal(diff)
	}
	plain := parse(t, []byte("<disk type='quorum'><driver type='quorum'/><threshold value='1'/>"+two+"<target dev='vda'/></disk>"))
	out, err := Apply(plain, ProduceQuorum{*q})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out.Bytes()); got != disk {
		t.Errorf("written anew:\n%s", Diff([]byte(disk), []byte(got), "want", "got"))
	}
}

// TestQuorumContradicts lists elements that no quorum can be read from.
func TestQuorumContradicts(t *testing.T) {
	for text, want := range map[string]string{
		quorumDisk(" threshold='2'", "<threshold value='3'/>"+two):         `threshold is "2" in <disk> and "3" in <threshold>`,
		quorumDisk(" threshold='2'", "<driver threshold='3'/>"+two):        `threshold is "3" in <driver> and "2" in <disk>`,
		quorumDisk(" threshold='2'", "<threshold value=''/>"+two):          `threshold is "2" in <disk> and "" in <threshold>`,
		quorumDisk("", "<threshold value='2'/><threshold value='3'/>"+two): "it has 2 <threshold>s",
		quorumDisk("", two):                                  "it has no threshold: write <threshold value='2'/>",
		quorumDisk("", "<threshold/>"+two):                   "it has no threshold: write <threshold value='2'/>",
		quorumDisk(" threshold=' 2'", two):                   `threshold " 2" is no number`,
		quorumDisk(" threshold='0x2'", two):                  `threshold "0x2" is no number`,
		quorumDisk(" threshold='99999999999999999999'", two): `threshold "99999999999999999999" is no number`,
		quorumDisk(" threshold='2' read_pattern='fifo'", "<driver read_pattern='quorum'/>"+two): `read_pattern is "quorum" in <driver> and "fifo" in <disk>`,
		quorumDisk(" threshold='2' blkverify='maybe'", two):                                     `blkverify "maybe" is neither on nor off`,
		quorumDisk(" threshold='2'", "<driver type='qcow2'/>"+two):                              `the disk is of type "quorum", its driver of type "qcow2"`,
		"<disk type='file'><driver type='quorum'/><target dev='vda'/></disk>":                   `the disk is of type "file", its driver of type "quorum"`,
		quorumDisk(" threshold='2'", "<source file='/a'/>"+two):                                 "it has a <source>: the images of its replicas stand in <backingStore>",
		quorumDisk(" threshold='2'", two+"<backingStore/>"):                                     "replica 3: its <backingStore> has no type",
		quorumDisk(" threshold='2'", two+"<backingStore type='quorum'>"+two+"</backingStore>"):  "replica 3: it is a quorum itself, which is not supported",
		quorumDisk(" threshold='2'", two+store("<format type='raw'/>")):                         "replica 3: its <backingStore> has no <source>",
		quorumDisk(" threshold='2'", two+store(image("/c")+two)):                                "replica 3: an image has 2 <backingStore>s: only the disk itself has several",
	} {
		q, ok, err := parse(t, []byte(text)).Quorum("vda")
		if err == nil || err.Error() != "disk vda: impossible quorum: "+want || !errors.Is(err, ErrQuorum) || ok || q != nil {
			t.Errorf("%s: %v %v", text, ok, err)
		}
		if all, again := ReadQuorum(parse(t, []byte(text))); again == nil || again.Error() != err.Error() || all != nil {
			t.Errorf("%s: ReadQuorum: %v", text, again)
		}
	}
	doc := parse(t, []byte(quorumDisk("", two)))
	if _, _, err := doc.Quorum("vdz"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// TestQuorumCheck: each fault has its line.
func TestQuorumCheck(t *testing.T) {
	replica := func(paths ...string) (r QuorumReplica) {
		for _, p := range paths {
			r.Chain = append(r.Chain, fileLayer("qcow2", p))
		}
		return r
	}
	nbd := func(hosts ...Host) QuorumReplica {
		return QuorumReplica{Chain: []Layer{{Type: "network", Format: "raw", Source: Source{Type: "network", Protocol: "nbd", Name: "e", Hosts: hosts}}}}
	}
	named := func(name string, r QuorumReplica) QuorumReplica { r.NodeName = name; return r }
	with := func(s Source) QuorumReplica {
		return QuorumReplica{Chain: []Layer{{Type: s.Type, Format: "raw", Source: s}}}
	}
	a, b, c := replica("/a"), replica("/b"), replica("/c")
	const odd = "slices, data stores, reservations, encryption, cookies and descriptors are not supported"
	for _, tc := range []struct {
		threshold int
		replicas  []QuorumReplica
		change    func(*QuorumDisk)
		want      string
	}{
		{2, []QuorumReplica{a, b, c}, nil, ""},
		{1, []QuorumReplica{a, b}, nil, ""},
		{3, []QuorumReplica{a, b, c}, func(q *QuorumDisk) { q.ReadPattern = "fifo" }, ""},
		{2, []QuorumReplica{a, b}, func(q *QuorumDisk) { q.Blkverify = true }, ""},
		{0, []QuorumReplica{a, b}, nil, "threshold 0: at least 1 replica has to vote"},
		{-1, []QuorumReplica{a, b}, nil, "threshold -1: at least 1 replica has to vote"},
		{3, []QuorumReplica{a, b}, nil, "threshold 3, but it has only 2 replicas"},
		{1, []QuorumReplica{a}, nil, "it has 1 replica, and needs at least 2 (one <backingStore> of the disk for each, side by side)"},
		{1, nil, nil, "it has 0 replicas, and needs at least 2 (one <backingStore> of the disk for each, side by side)"},
		{1, make([]QuorumReplica, 33), nil, "it has 33 replicas, more than 32"},
		{1, []QuorumReplica{a, {}}, nil, "replica 2 has no image"},
		{1, []QuorumReplica{a, {Chain: make([]Layer, 201)}}, nil, "replica 2: a chain of more than 200 images"},
		{1, []QuorumReplica{a, b}, func(q *QuorumDisk) { q.ReadPattern = "lifo\n" }, `read pattern "lifo\n": quorum and fifo are known`},
		{2, []QuorumReplica{a, b, c}, func(q *QuorumDisk) { q.Blkverify = true }, "blkverify compares exactly 2 replicas with threshold 2, not 3 with threshold 2"},
		{1, []QuorumReplica{a, b}, func(q *QuorumDisk) { q.Blkverify = true }, "blkverify compares exactly 2 replicas with threshold 2, not 2 with threshold 1"},
		{2, []QuorumReplica{a, b}, func(q *QuorumDisk) { q.Blkverify, q.ReadPattern = true, "fifo" }, "blkverify compares what the read pattern fifo does not read"},
		{2, []QuorumReplica{a, a}, nil, "replicas 1 and 2 are not distinct: both have /a"},
		{2, []QuorumReplica{a, b, replica("/./x/..//b")}, nil, "replicas 2 and 3 are not distinct: both have /./x/..//b"},
		{2, []QuorumReplica{replica("/a", "/base"), replica("/b", "/base")}, nil, "replicas 1 and 2 are not distinct: both have /base"},
		{2, []QuorumReplica{replica("/a", "/b"), b}, nil, "replicas 1 and 2 are not distinct: both have /b"},
		{2, []QuorumReplica{b, replica("/a", "/x", "/b")}, nil, "replicas 1 and 2 are not distinct: both have /b"},
		{2, []QuorumReplica{replica("/a", "/x", "/a"), b}, nil, "replica 1 has /a twice in its chain"},
		{2, []QuorumReplica{a, with(Source{Type: "block", Dev: "/a/"})}, nil, "replicas 1 and 2 are not distinct: both have /a/"},
		{2, []QuorumReplica{nbd(Host{Name: "h", Port: "1"}), nbd(Host{Name: "h", Port: "1"})}, nil, "replicas 1 and 2 are not distinct: both have nbd:e"},
		{2, []QuorumReplica{nbd(Host{Name: "h"}), nbd(Host{Name: "h", Port: "10809", Transport: "tcp"})}, nil, "replicas 1 and 2 are not distinct: both have nbd:e"},
		{2, []QuorumReplica{nbd(Host{Socket: "/s"}), nbd(Host{Transport: "unix", Socket: "/./s"})}, nil, "replicas 1 and 2 are not distinct: both have nbd:e"},
		{2, []QuorumReplica{nbd(Host{Name: "h", Port: "1"}), nbd(Host{Name: "h", Port: "2"})}, nil, ""},
		{2, []QuorumReplica{a, replica("b")}, nil, "replica 2: b: its path is not absolute"},
		{2, []QuorumReplica{a, replica("")}, nil, "replica 2: no medium: its path is missing"},
		{2, []QuorumReplica{a, {Chain: []Layer{fileLayer("", "/b")}}}, nil, "replica 2: /b: its format is missing"},
		{2, []QuorumReplica{a, with(Source{Type: "volume", Pool: "p", Volume: "v"})}, nil, `replica 2: volume p/v: a replica cannot be of type "volume"`},
		{2, []QuorumReplica{a, with(Source{Type: "network"})}, nil, "replica 2: :: its protocol is missing"},
		{2, []QuorumReplica{a, with(Source{Type: "file", File: "/b", HasSlices: true})}, nil, "replica 2: /b: " + odd},
		{2, []QuorumReplica{a, with(Source{Type: "file", File: "/b", HasDataStore: true})}, nil, "replica 2: /b: " + odd},
		{2, []QuorumReplica{a, with(Source{Type: "file", File: "/b", HasEncryption: true})}, nil, "replica 2: /b: " + odd},
		{2, []QuorumReplica{a, with(Source{Type: "file", File: "/b", FDGroup: "x"})}, nil, "replica 2: /b: " + odd},
		{2, []QuorumReplica{a, with(Source{Type: "file", File: "/b", StartupPolicy: "optional"})}, nil,
			"replica 2: /b: its startupPolicy is optional, but which replicas may be missing the threshold says"},
		{2, []QuorumReplica{named("r1", a), named("r1", b)}, nil, "replicas 1 and 2 both have the node name r1"},
		{2, []QuorumReplica{named("1r", a), b}, nil, `replica 1: "1r" is no node name (a letter, then letters, digits and -._, less than 32)`},
		{2, []QuorumReplica{a, named("r,x", b)}, nil, `replica 2: "r,x" is no node name (a letter, then letters, digits and -._, less than 32)`},
		{2, []QuorumReplica{a, named(strings.Repeat("r", 32), b)}, nil, `replica 2: "` + strings.Repeat("r", 32) + `" is no node name (a letter, then letters, digits and -._, less than 32)`},
		{2, []QuorumReplica{a, named("R-2_.x"+strings.Repeat("r", 25), b)}, nil, ""},
		{2, []QuorumReplica{a, b}, func(q *QuorumDisk) { q.Target = "" }, "the disk has no target"},
	} {
		q := QuorumDisk{Target: "vda", Threshold: tc.threshold, Replicas: tc.replicas}
		if tc.change != nil {
			tc.change(&q)
		}
		err := q.Check()
		want := "disk vda: impossible quorum: " + tc.want
		if q.Target == "" {
			want = "impossible quorum: " + tc.want
		}
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%+v: %v", q, err)
		case tc.want != "" && (err == nil || err.Error() != want || !errors.Is(err, ErrQuorum)):
			t.Errorf("got  %v\nwant %s", err, want)
		}
		doc := parse(t, []byte("<domain><devices><disk><target dev='vda' bus='virtio'/></disk></devices></domain>"))
		if _, applied := Apply(doc, ProduceQuorum{q}); fmt.Sprint(applied) != fmt.Sprint(err) {
			t.Errorf("ProduceQuorum: %v, Check: %v", applied, err)
		}
	}
}
