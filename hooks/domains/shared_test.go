// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/lock"
)

const otherUUID = "99999999-2222-3333-4444-555555555555"

// An image is free when two domains are about to be bound to it; the second
// one finds that out.
func TestImageThatWasBoundMeanwhile(t *testing.T) {
	root := t.TempDir()
	image := root + "/images/vda.raw"
	write(t, image, strings.Repeat("x", 4096))
	libvirt := &oneDomain{xml: bare(image, "raw")}
	s := testService(t, root, libvirt)
	s.Host.Config.Local.Reserve, s.Local.Config.Local.Reserve = 0, 0
	bind, err := bindings.Parse("--local", "vda:local=dir", bindings.Flag)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.PlanApply(t.Context(), "vm", bind, false)
	if err != nil {
		t.Fatal(err)
	}
	was := libvirt.xml
	libvirt.others = []Facts{{Name: "other", UUID: otherUUID, XML: otherwise(boundTo(root, testMachine, "", "vda"))}}
	refusedWith(t, s.Apply(t.Context(), p, localdisk.Waiting{}), failure.Conflict, "the disk vda of the domain other", "`diskhook domain revert other vda`")
	if libvirt.xml != was {
		t.Errorf("it is bound: %s", libvirt.xml)
	}
	held, err := lock.Try(s.Host.Layout.Locks(), "bind")
	if err != nil {
		t.Fatal(err)
	}
	libvirt.others = nil
	refusedWith(t, s.Apply(t.Context(), p, localdisk.Waiting{}), failure.Temporary, "another diskhook binds disks", "run this again")
	held.Release()
	if libvirt.xml != was {
		t.Errorf("it is bound: %s", libvirt.xml)
	}
}

// otherwise is text of the other domain instead of ours.
func otherwise(text string) string {
	return strings.NewReplacer(testUUID, otherUUID, "<name>vm<", "<name>other<").Replace(text)
}

// An image that another domain was bound from is that domain's, although its
// definition does not name it any more.
func TestOriginOfAnotherDomainIsShared(t *testing.T) {
	readOnly := func(xml string) string {
		return strings.Replace(xml, "<target dev='vda'/>", "<target dev='vda'/><readonly/>", 1)
	}
	for name, tc := range map[string]struct {
		other   func(root string) string
		receipt []any // the other's; nil: it has none
		used    bool
		refused bool
	}{
		"bound":                    {other: func(root string) string { return boundTo(root, testMachine, "", "vda") }, refused: true},
		"bound, read-only":         {other: func(root string) string { return readOnly(boundTo(root, testMachine, "", "vda")) }, refused: true},
		"bound from another image": {other: func(root string) string { return boundTo(root, testMachine, "", "vdb") }},
		"bound, in a clone": {other: func(root string) string {
			return strings.Replace(boundTo(root, testMachine, "", "vda"), "domain='"+testUUID, "domain='22222222-2222-3333-4444-555555555555", 1)
		}},
		"its metadata are lost": {other: func(root string) string { return bare(root+"/run/diskhook/disks/"+otherUUID+"/vda", "raw") },
			receipt: []any{"source", "ROOT/images/vda.raw"}, refused: true},
		"its disk is gone, but the copy was used": {other: func(string) string { return "<domain><name>vm</name><uuid>" + testUUID + "</uuid></domain>" },
			receipt: []any{"source", "ROOT/images/vda.raw"}, used: true, refused: true},
		"nothing binds its unused copy": {other: func(root string) string { return bare(root+"/images/else.raw", "raw") },
			receipt: []any{"source", "ROOT/images/vda.raw"}},
		"its copy is given up": {other: func(root string) string { return bare(root+"/images/else.raw", "raw") },
			receipt: []any{"source", "ROOT/images/vda.raw", "discarding", true}, used: true},
		"by another name": {other: func(root string) string {
			return strings.ReplaceAll(boundTo(root, testMachine, "", "vda"), "images/vda.raw", "images/link.raw")
		}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			image := root + "/images/vda.raw"
			write(t, image, strings.Repeat("x", 4096))
			if err := os.Symlink(image, root+"/images/link.raw"); err != nil {
				t.Fatal(err)
			}
			libvirt := &oneDomain{xml: bare(image, "raw"), others: []Facts{{Name: "other", UUID: otherUUID, XML: otherwise(tc.other(root))}}}
			s := testService(t, root, libvirt)
			s.Host.Config.Local.Reserve = 0
			if tc.receipt != nil {
				more := []any{}
				for _, v := range tc.receipt {
					if v == "ROOT/images/vda.raw" {
						v = []map[string]string{{"path": image, "format": "raw"}}
					}
					more = append(more, v)
				}
				setCopy(t, s, "vda", tc.used, more...)
				theirs := filepath.Join(s.Host.Layout.Receipts(), otherUUID, "vda.json")
				ours := filepath.Join(s.Host.Layout.Receipts(), testUUID, "vda.json")
				text, err := os.ReadFile(ours)
				if err != nil {
					t.Fatal(err)
				}
				write(t, theirs, otherwise(string(text)))
				if err := os.RemoveAll(filepath.Dir(ours)); err != nil {
					t.Fatal(err)
				}
				if err := os.RemoveAll(s.Host.Config.Local.Dir); err != nil {
					t.Fatal(err)
				}
			}
			bind, err := bindings.Parse("--local", "vda:local=dir", bindings.Flag)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.PlanApply(t.Context(), "vm", bind, false)
			if !tc.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refusedWith(t, err, failure.Conflict, image+" is what the disk vda of the domain other was before it was bound", "`diskhook domain revert other vda`")
		})
	}
}
