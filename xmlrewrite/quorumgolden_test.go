// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

func fileLayer(format, path string) Layer {
	return Layer{Type: "file", Format: format, Source: Source{Type: "file", File: path}}
}

// replicas is a quorum of three chains that a replica set could hold.
func replicas(target string) QuorumDisk {
	q := QuorumDisk{Target: target, Threshold: 2}
	for i := range 3 {
		q.Replicas = append(q.Replicas, QuorumReplica{Chain: []Layer{
			fileLayer("qcow2", fmt.Sprintf("/srv/%d/top.qcow2", i+1)), fileLayer("raw", fmt.Sprintf("/srv/%d/base.raw", i+1)),
		}})
	}
	return q
}

func quorums(t testing.TB, doc *Document) []*QuorumDisk {
	t.Helper()
	all, err := ReadQuorum(doc)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// lowering is what becomes of a quorum.
type lowering func(QuorumDisk) Rewriter

func produced(q QuorumDisk) Rewriter { return ProduceQuorum{q} }

func inlined(q QuorumDisk) Rewriter {
	return InlineQuorum{Disks: []InlineDisk{{q, "votes"}}, RawNode: RawNodeFormat}
}

func exported(x ExportQuorum) lowering {
	return func(q QuorumDisk) Rewriter {
		x.Target, x.Socket = q.Target, "/run/diskhook/quorum/db/nbd.sock"
		return x
	}
}

// voted lowers the quorum that a document has.
func voted(target string, lower lowering) rewriters {
	return func(t testing.TB, doc *Document) []Rewriter {
		q, ok, err := doc.Quorum(target)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		return append([]Rewriter{lower(*q)}, record(t, doc, target)...)
	}
}

// voting makes a disk a quorum that it was not.
func voting(target string, lower lowering) rewriters {
	return func(t testing.TB, doc *Document) []Rewriter {
		return append([]Rewriter{lower(replicas(target))}, record(t, doc, target)...)
	}
}

// record writes down what the disk was, as applying a binding does.
func record(t testing.TB, doc *Document, target string) []Rewriter {
	t.Helper()
	if doc.Root() != "domain" {
		return nil
	}
	origin, err := doc.Origin(target)
	if err != nil {
		t.Fatal(err)
	}
	return []Rewriter{SetMetadata{[]BoundDisk{{Target: target, Origin: origin, Quorum: &Quorum{Set: "db"}}}}}
}

// TestQuorumRoundTrip: produced, lowered and given back, a domain is what it
// was, byte for byte, where the disk's parts stood in libvirt's order.
func TestQuorumRoundTrip(t *testing.T) {
	lowerings := map[string][]lowering{
		"none":       {produced},
		"export":     {produced, exported(ExportQuorum{Name: "db"})},
		"vhost-user": {produced, exported(ExportQuorum{VhostUser: true})},
		"inline":     {produced, inlined},
		"one after the other": {inlined, produced, exported(ExportQuorum{Name: "db", Reconnect: 5}),
			exported(ExportQuorum{Name: "other"}), inlined},
	}
	tried := map[string]int{}
	for _, name := range []string{"quorum-seed", "libvirt-file", "libvirt-rbd", "libvirt-shared", "virt-install", "vdsm-mixed", "compact"} {
		in := fixture(t, name+".in.xml")
		doc := parse(t, in)
		for _, d := range doc.Disks() {
			for how, lowers := range lowerings {
				there, err := Apply(doc, steps(lowers, d.Target)...)
				if err != nil {
					continue // a CD-ROM, or vhost-user where memory is not shared
				}
				tried[how]++
				if there, err = Apply(there, record(t, doc, d.Target)...); err != nil {
					t.Fatal(err)
				}
				// Everything again changes nothing more.
				again, err := Apply(there, steps(lowers[len(lowers)-1:], d.Target)...)
				if err != nil || !bytes.Equal(again.Bytes(), there.Bytes()) {
					t.Errorf("%s, disk %s, %s: again %v\n%s", name, d.Target, how, err, Diff(there.Bytes(), again.Bytes(), "once", "twice"))
				}
				back, err := Apply(parse(t, there.Bytes()), RemoveInline{d.Target}, RestoreOrigin{d.Target}, RemoveMetadata{})
				if err != nil {
					t.Fatal(err)
				}
				if got := back.Bytes(); !bytes.Equal(got, in) {
					t.Errorf("%s, disk %s, %s:\n%s", name, d.Target, how, Diff(in, got, "before", "after"))
				}
			}
		}
	}
	for how, n := range map[string]int{"none": 6, "export": 6, "vhost-user": 1, "inline": 6, "one after the other": 6} {
		if tried[how] < n {
			t.Errorf("only %d disks were lowered to %s", tried[how], how)
		}
	}
}

func steps(lowers []lowering, target string) (all []Rewriter) {
	for _, lower := range lowers {
		all = append(all, lower(replicas(target)))
	}
	return all
}

// TestQuorumOrigin: the element that a disk was, in whatever spelling, can be
// read from the domain's metadata while it is lowered.
func TestQuorumOrigin(t *testing.T) {
	for _, c := range []struct{ name, target string }{{"quorum-seed", "vda"}, {"quorum-args", "vdb"}, {"quorum-args", "vda"}} {
		doc := parse(t, fixture(t, c.name+".in.xml"))
		was, _, err := doc.Quorum(c.target)
		if err != nil {
			t.Fatal(err)
		}
		low, err := Apply(doc, voted(c.target, exported(ExportQuorum{Name: "db"}))(t, doc)...)
		if err != nil {
			t.Fatal(err)
		}
		m, err := low.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		b, _ := m.Disk(c.target)
		kept := quorums(t, parse(t, b.Origin))
		if len(kept) != 1 {
			t.Fatalf("%s: %d quorums in %s", c.name, len(kept), b.Origin)
		}
		kept[0].Target = c.target // which an origin does not repeat
		if diff := cmp.Diff(was, kept[0]); diff != "" {
			t.Errorf("%s, disk %s: the origin differs:\n%s", c.name, c.target, diff)
		}
		back, err := Apply(low, RestoreOrigin{c.target})
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := back.Quorum(c.target)
		if err != nil || !cmp.Equal(was, again) {
			t.Errorf("%s, disk %s: given back: %v\n%s", c.name, c.target, err, cmp.Diff(was, again))
		}
	}
}
