// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	. "diskhook/xmlrewrite"
)

var (
	imagePath = rapid.StringMatching(`/(srv|it's|<a> & "b"|ü|tab	)/[a-z]{1,8}`)
	format    = rapid.SampledFrom([]string{"raw", "qcow2", "vmdk"})
)

func genSource(t *rapid.T) Source {
	switch rapid.SampledFrom([]string{"file", "file", "block", "network"}).Draw(t, "type") {
	case "file":
		return Source{Type: "file", File: imagePath.Draw(t, "path")}
	case "block":
		return Source{Type: "block", Dev: imagePath.Draw(t, "path")}
	}
	s := Source{Type: "network", Protocol: rapid.SampledFrom([]string{"nbd", "rbd", "iscsi", "https"}).Draw(t, "protocol"), Name: imagePath.Draw(t, "name")}
	for range rapid.IntRange(0, 3).Draw(t, "hosts") {
		s.Hosts = append(s.Hosts, rapid.SampledFrom([]Host{{Name: "h"}, {Name: "::1", Port: "1"}, {Transport: "unix", Socket: "/s"}}).Draw(t, "host"))
	}
	if rapid.Bool().Draw(t, "auth") {
		s.HasAuth, s.Auth = true, &Auth{Username: "u&", Type: "ceph", Usage: imagePath.Draw(t, "secret")}
	}
	s.Snapshot, s.Config = rapid.SampledFrom([]string{"", "s"}).Draw(t, "snapshot"), rapid.SampledFrom([]string{"", "/c"}).Draw(t, "config")
	s.Initiator, s.TLS = rapid.SampledFrom([]string{"", "iqn.x"}).Draw(t, "initiator"), rapid.SampledFrom([]string{"", "yes"}).Draw(t, "tls")
	return s
}

// genQuorum generates a quorum that can work.
func genQuorum(t *rapid.T, target string) QuorumDisk {
	return rapid.Custom(func(t *rapid.T) QuorumDisk {
		q := QuorumDisk{Target: target}
		for i := range rapid.IntRange(2, 5).Draw(t, "replicas") {
			r := QuorumReplica{Open: rapid.Bool().Draw(t, "open")}
			if rapid.Bool().Draw(t, "named") {
				r.NodeName = fmt.Sprint("replica-", i)
			}
			for range rapid.IntRange(1, 4).Draw(t, "images") {
				s := genSource(t)
				r.Chain = append(r.Chain, Layer{Type: s.Type, Format: format.Draw(t, "format"), Source: s})
			}
			q.Replicas = append(q.Replicas, r)
		}
		q.Threshold = rapid.IntRange(1, len(q.Replicas)).Draw(t, "threshold")
		q.ReadPattern = rapid.SampledFrom([]string{"", "fifo"}).Draw(t, "pattern")
		q.Blkverify = len(q.Replicas) == 2 && q.Threshold == 2 && q.ReadPattern == ""
		return q
	}).Filter(func(q QuorumDisk) bool { return q.Check() == nil }).Draw(t, "quorum")
}

// TestQuorumUntouchedBytes: what is written is read back the same, and nothing
// else of the document moves.
func TestQuorumUntouchedBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunks := genDomain(t)
		in := join(chunks)
		doc, err := Parse([]byte(in))
		if err != nil {
			t.Fatalf("%v in\n%s", err, in)
		}
		_, mark, _ := strings.Cut(in, "<!--chosen ")
		q := genQuorum(t, mark[:3])
		out, err := Apply(doc, ProduceQuorum{q})
		if err != nil {
			t.Fatalf("%v", err)
		}
		checkUntouched(t, chunks, string(out.Bytes()))
		again, err := Parse(out.Bytes())
		if err != nil {
			t.Fatalf("%v in\n%s", err, out.Bytes())
		}
		got, ok, err := again.Quorum(q.Target)
		if err != nil || !ok || !cmp.Equal(*got, q) {
			t.Fatalf("%v %v in\n%s\n%s", ok, err, out.Bytes(), cmp.Diff(&q, got))
		}
		if twice, err := Apply(again, ProduceQuorum{q}); err != nil || !bytes.Equal(twice.Bytes(), out.Bytes()) {
			t.Fatalf("a second time: %v\n%s", err, twice.Bytes())
		}
		lowered, err := Apply(again, ExportQuorum{Target: q.Target, Socket: "/run/q.sock", Name: "q"})
		if err != nil {
			t.Fatalf("%v", err)
		}
		checkUntouched(t, chunks, string(lowered.Bytes()))
		if d, _ := lowered.Disk(q.Target); d.QuorumPath() != "/run/q.sock" || d.Chain != nil || d.Type != "network" {
			t.Fatalf("the disk is %+v", d)
		}
	})
}

// FuzzQuorum: no text brings the reader, the checks or the lowerings to fall,
// and what they make is read again.
func FuzzQuorum(f *testing.F) {
	seed(f, func(b []byte) { f.Add(b) })
	f.Add([]byte(seedElement))
	f.Add([]byte(quorumDisk(" threshold='2' read_pattern='fifo'", two)))
	f.Add([]byte(domainOf("<disk type='quorum'><threshold value='1'/>"+two+"<target dev='vda' bus='virtio'/></disk>", sharedMemory)))
	f.Fuzz(func(t *testing.T, text []byte) {
		doc, err := Parse(text)
		if err != nil {
			return
		}
		line := func(err error) {
			if err != nil && (strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 1200) {
				t.Fatalf("not one line: %q", err)
			}
		}
		all, err := ReadQuorum(doc)
		line(err)
		for _, d := range doc.Disks() {
			_, _, err := doc.Quorum(d.Target)
			line(err)
			line(CheckInline(doc, d.Target))
			d.QuorumPath()
		}
		SharedMemory(doc)
		for _, q := range all {
			line(q.Check())
			if _, unique := doc.Disk(q.Target); !unique {
				continue
			}
			for _, r := range []Rewriter{
				ProduceQuorum{*q}, ExportQuorum{Target: q.Target, Socket: "/s", Name: "n"}, ExportQuorum{Target: q.Target, Socket: "/s", VhostUser: true},
				InlineQuorum{Disks: []InlineDisk{{*q, "votes"}}, RawNode: RawNodeFormat},
			} {
				out, err := Apply(doc, r)
				line(err)
				if err != nil {
					continue
				}
				again, err := Parse(out.Bytes())
				if err != nil {
					t.Fatalf("%T: %v\n%s", r, err, out.Bytes())
				}
				if _, produced := r.(ProduceQuorum); produced && !bytes.Equal(out.Bytes(), text) {
					t.Fatalf("a quorum that is what it is was changed:\n%s", Diff(text, out.Bytes(), "in", "out"))
				}
				if _, inline := r.(InlineQuorum); inline {
					if err := CheckInline(again, q.Target); err != nil {
						t.Fatalf("%v in\n%s", err, out.Bytes())
					}
				}
				if twice, err := Apply(again, r); err != nil || !bytes.Equal(twice.Bytes(), out.Bytes()) {
					t.Fatalf("%T a second time: %v", r, err)
				}
			}
		}
	})
}

// TestQuorumHostile: what is too much is refused, and soon.
func TestQuorumHostile(t *testing.T) {
	deep := func(n int) string {
		return strings.Repeat("<backingStore type='file'><format type='qcow2'/><source file='/x'/>", n) + strings.Repeat("</backingStore>", n)
	}
	began := time.Now()
	for text, want := range map[string]string{
		quorumDisk(" threshold='2'", strings.Repeat(store(image("/a")), 20_000)): "disk vda: impossible quorum: it has 20000 replicas, more than 32",
		quorumDisk(" threshold='2'", strings.Repeat(deep(200), 32)):              "disk vda: impossible quorum: replica 1 has /x twice in its chain",
		quorumDisk(" threshold='2'", deep(201)+deep(1)):                          "disk vda: impossible quorum: replica 1: a chain of more than 200 images",
		quorumDisk(" threshold='2'", deep(300)):                                  "XML nested too deeply: line 1: more than 256 levels",
		quorumDisk(" threshold='"+strings.Repeat("9", 1<<20)+"'", two):           `disk vda: impossible quorum: threshold "` + strings.Repeat("9", 80) + `…" is no number`,
		quorumDisk(" threshold='2'", store(image("/"+strings.Repeat("a", 1<<20)))+store("<format type='raw'/><source file='/b'><slices/></source>")): "disk vda: impossible quorum: replica 2: /b: slices, data stores, reservations, encryption, cookies and descriptors are not supported",
	} {
		doc, err := Parse([]byte(text))
		if err == nil {
			var q *QuorumDisk
			if q, _, err = doc.Quorum("vda"); err == nil {
				err = q.Check()
			}
		}
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	// Many disks, each with an override of its own, and many nodes.
	disks, more := strings.Builder{}, strings.Builder{}
	more.WriteString("<override xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>")
	for i := range 5_000 {
		fmt.Fprintf(&disks, "<disk><target dev='vd%d' bus='virtio'/><alias name='ua-%d'/></disk>", i, i)
		fmt.Fprintf(&more, "<device alias='ua-%d'><frontend><property name='drive' value='n%d'/></frontend></device>", i, i)
	}
	more.WriteString("</override><commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>")
	for i := range 5_000 {
		fmt.Fprintf(&more, `<arg value='-blockdev'/><arg value='{"driver":"quorum","node-name":"n%d","children":["libvirt-1-format"]}'/>`, i)
	}
	more.WriteString("</commandline>")
	doc := parse(t, []byte(domainOf(disks.String(), more.String())))
	if _, err := Apply(doc, InlineQuorum{}); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
}
