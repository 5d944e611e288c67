// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"path/filepath"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// votesBeside is a domain whose first disk is an inline quorum that an operator
// wrote, and whose second is bound to a local copy and has a chain of two to go
// back to.
func votesBeside(t *testing.T, root string) string {
	t.Helper()
	text := boundTo(root, testMachine, "", "vdb")
	text = strings.Replace(text, "/images/vdb.raw'/></disk>", "/images/vdb.qcow2'/><backingStore type='file'><format type='raw'/><source file='"+root+"/images/base.raw'/><backingStore/></backingStore></disk>", 1)
	text = strings.Replace(text, "<driver name='qemu' type='raw'/><source file='"+root, "<driver name='qemu' type='qcow2'/><source file='"+root, 1)
	text = strings.Replace(text, "<target dev='vdb'/>", "<target dev='vdb' bus='virtio'/>", 1)
	text = strings.Replace(text, "<devices>\n", "<devices>\n<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/srv/plain.raw'/><target dev='vda' bus='virtio'/></disk>\n", 1)
	doc, err := xmlrewrite.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	q := xmlrewrite.QuorumDisk{Target: "vda", Threshold: 2}
	for _, path := range []string{"/srv/1.raw", "/srv/2.raw", "/srv/3.raw"} {
		q.Replicas = append(q.Replicas, xmlrewrite.QuorumReplica{Chain: []xmlrewrite.Layer{{Type: "file", Format: "raw", Source: xmlrewrite.Source{Type: "file", File: path}}}})
	}
	doc, err = xmlrewrite.Apply(doc, xmlrewrite.InlineQuorum{Disks: []xmlrewrite.InlineDisk{{QuorumDisk: q, Name: "votes"}}, RawNode: xmlrewrite.RawNodeFormat})
	if err != nil {
		t.Fatal(err)
	}
	return string(doc.Bytes())
}

// A disk that goes back to a chain of another length shifts the numbers by which
// libvirt knows the images of the disks before it.
func TestRevertNumbersInlineQuorums(t *testing.T) {
	root := t.TempDir()
	libvirt := &oneDomain{xml: votesBeside(t, root)}
	s := testService(t, root, libvirt)
	number := func(doc *xmlrewrite.Document) string {
		nodes, _ := doc.InlineNodes("vda")
		if err := xmlrewrite.CheckInline(doc, "vda"); err != nil || len(nodes.Children) != 3 {
			t.Fatalf("%v: %v", nodes, err)
		}
		return nodes.Children[0]
	}
	for verb, plan := range map[string]func() (*Plan, error){
		"revert": func() (*Plan, error) { return s.PlanRevert(t.Context(), "vm", []string{"vdb"}, GivingUp{}) },
		"unbind": func() (*Plan, error) { return s.PlanUnbind(t.Context(), "vm", true) },
	} {
		p, err := plan()
		if err != nil {
			t.Fatal(verb, err)
		}
		if got := number(p.Domain.Doc); got != "libvirt-2-format" {
			t.Errorf("%s: before it is %s", verb, got)
		}
		if got := number(p.After); got != "libvirt-3-format" {
			t.Errorf("%s: after it is %s", verb, got)
		}
	}
}

// A set that a guest has used is that guest's disk, and no other's; another set
// that has its name later is neither's.
func TestOwnTruth(t *testing.T) {
	const another = "22222222-2222-3333-4444-555555555555"
	used := func(domain, target, set, uuid string) string {
		return `{"schema":"diskhook.quorum-use/v1","set":"` + set + `","domain":"` + domain + `","domain_name":"of","target":"` + target + `","key":"` + target + `","set_uuid":"` + uuid + `"}`
	}
	db := hooktest.Set("db")
	for name, c := range map[string]struct {
		domain, target, receipt string
		own                     bool
		words                   []string
	}{
		"nobody":                  {domain: testUUID, target: "vda"},
		"this disk":               {testUUID, "vda", used(testUUID, "vda", "db", db.UUID), true, nil},
		"this disk, unnoted uuid": {testUUID, "vda", used(testUUID, "vda", "db", ""), true, nil},
		"this disk, earlier set":  {testUUID, "vda", used(testUUID, "vda", "db", another), false, []string{"not the one of that name", "diskhook quorum forget --discard-guest-data " + testUUID + " vda"}},
		"this disk, other set":    {testUUID, "vda", used(testUUID, "vda", "logs", ""), false, []string{"its data is in the replica set logs", "diskhook domain revert --export FILE vm vda"}},
		"other disk":              {testUUID, "vdb", used(testUUID, "vdb", "db", db.UUID), false, []string{"what the guest of domain of wrote to its disk vdb"}},
		"other domain":            {another, "vda", used(another, "vda", "db", db.UUID), false, []string{"what the guest of domain of wrote to its disk vda", "diskhook quorum build", "forget --discard-guest-data " + another + " vda"}},
		"other, earlier set":      {domain: another, target: "vda", receipt: used(another, "vda", "db", another)},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := testService(t, root, &oneDomain{})
			s.Host.Quorum = &hooktest.Quorum{Sets: map[string]quorum.Set{"db": db}}
			if c.receipt != "" {
				write(t, filepath.Join(s.Host.Layout.Receipts(), c.domain, c.target+".quorum"), c.receipt)
			}
			d := Domain{Domain: bindings.Domain{Name: "vm", UUID: testUUID}}
			own, err := s.ownTruth(d, bindings.Bound{Disk: bindings.Disk{Target: "vda", Path: "/srv/a.raw"}, Binding: bindings.Binding{Kind: "quorum", Value: "db"}})
			if own != c.own && err == nil || (err != nil) != (c.words != nil) {
				t.Fatalf("own %t, %v", own, err)
			}
			for _, word := range c.words {
				if line := failure.Line(err); !strings.Contains(line, word) {
					t.Errorf("the line lacks %q: %s", word, line)
				}
			}
		})
	}
}

// A disk that was written to after its set was held against it is not bound.
func TestBoundDiskIsUnwritten(t *testing.T) {
	root := t.TempDir()
	s := testService(t, root, &oneDomain{})
	path := filepath.Join(root, "images", "a.raw")
	write(t, path, strings.Repeat("x", 4096))
	d := Domain{Domain: bindings.Domain{Name: "vm", UUID: testUUID}}
	p := &Plan{Domain: d, binds: []bindings.Bound{
		{Disk: bindings.Disk{Target: "vda", Path: path, Format: "raw", Complete: true}, Binding: bindings.Binding{Kind: "quorum", Value: "db"}},
		{Disk: bindings.Disk{Target: "vdb", Path: "/nonexistent"}, Binding: bindings.Binding{Kind: "local"}},
	}}
	var err error
	if p.sources, err = s.fingerprints(t.Context(), d, p.binds); err != nil || len(p.sources) != 1 {
		t.Fatal(p.sources, err)
	}
	if err := s.unwritten(t.Context(), p); err != nil {
		t.Error(err)
	}
	write(t, path, strings.Repeat("y", 4096))
	if err := s.unwritten(t.Context(), p); failure.KindOf(err) != failure.Temporary || !strings.Contains(failure.Line(err), "domain vm: disk vda: it was written to") {
		t.Errorf("got %v", err)
	}
}
