// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// bare is a domain whose metadata somebody took out; the driver is that of a
// bound disk, or of the qcow2 image that source is.
func bare(source, format string) string {
	return fmt.Sprintf("<domain type='kvm'><name>vm</name><uuid>%s</uuid><devices>\n<disk type='file' device='disk'><driver name='qemu' type='%s' cache='none' io='threads'/><source file='%s'/><target dev='vda'/></disk>\n</devices></domain>", testUUID, format, source)
}

// What the receipt knows is bound again, to the letter; what it does not know
// is refused, with a way to go on.
func TestLostMetadata(t *testing.T) {
	const origin = "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='writeback' discard='unmap'/><source file='ROOT/images/vda.qcow2'/></disk>"
	const guessed = "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='threads'/><source file='ROOT/images/vda.qcow2'/></disk>"
	source := []imagecheck.Layer{{Path: "ROOT/images/vda.qcow2", Format: "qcow2"}, {Path: "ROOT/images/base.raw", Format: "raw"}}
	for name, tc := range map[string]struct {
		receipt      []any
		fill, origin string // of the entry that is written; "" if it is refused
	}{
		"as it was bound":  {[]any{"source", source, "fill", "start", "origin", origin}, "start", origin},
		"adopted":          {[]any{"fill", "now", "origin", origin}, "now", origin},
		"an old receipt":   {[]any{"source", source}, "now", guessed},
		"a damaged origin": {[]any{"source", source, "fill", "start", "origin", "<disk"}, "start", guessed},
		"an old adoption":  {nil, "", ""},
	} {
		for _, above := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s above=%v", name, above), func(t *testing.T) {
				root := t.TempDir()
				s := testService(t, root, nil)
				stable := localdisk.StablePath(s.Host.Layout, testUUID, "vda")
				is, format := stable, "raw"
				if above {
					is, format = root+"/images/snap.qcow2", "qcow2"
				}
				xml := bare(is, format)
				if above {
					xml = strings.Replace(xml, "<target", "<backingStore type='file'><format type='raw'/><source file='"+stable+"'/></backingStore><target", 1)
				}
				s.use(&oneDomain{xml: xml})
				setCopy(t, s, "vda", true, rooted(root, tc.receipt)...)

				p, err := s.PlanApply(t.Context(), "vm", nil, false)
				if tc.origin == "" {
					hint := "diskhook domain revert --export FILE vm vda"
					if above {
						hint = "diskhook local export vm vda FILE"
					}
					refusedWith(t, err, failure.Precondition, "nor its receipt say what it was before", hint)
				} else if err != nil {
					t.Fatal(err)
				} else if e, err := p.After.Metadata(); err != nil {
					t.Error(err)
				} else {
					if diff := cmp.Diff(strings.ReplaceAll(tc.origin, "ROOT", root), string(e.Disks[0].Origin)); diff != "" {
						t.Errorf("origin: %s", diff)
					}
					if l := e.Disks[0].Local; l.Fill != tc.fill || l.Host != testMachine || l.Copy == "" || len(p.Fill) > 0 {
						t.Errorf("bound as %+v, fills %v", l, p.Fill)
					}
					if disk, _ := p.After.Disk("vda"); disk.Source.Path() != is {
						t.Errorf("the disk is %s now", disk.Source.Path())
					}
				}

				_, err = s.PlanRevert(t.Context(), "vm", nil, GivingUp{DiscardGuestData: true})
				switch {
				case tc.origin == "":
					refusedWith(t, err, failure.Precondition, "nor its receipt say what it was before", "vm vda")
				case above:
					refusedWith(t, err, failure.Conflict, "snap.qcow2 is a snapshot on top of its local copy", "`diskhook domain apply vm`, then start the domain and merge it")
				case err != nil:
					t.Error(err)
				}
				p, err = s.PlanRevert(t.Context(), "vm", nil, GivingUp{Export: map[string]string{"": root + "/new.raw"}})
				if above {
					if err == nil {
						t.Error("a copy below a snapshot was exported and given up")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if disk, _ := p.After.Disk("vda"); disk.Source.Path() != root+"/new.raw" || len(p.Exports) != 1 {
					t.Errorf("the disk is %s, exports %v", disk.Source.Path(), p.Exports)
				}
			})
		}
	}
}

// rooted puts the root where values say ROOT.
func rooted(root string, more []any) []any {
	var all []any
	for _, v := range more {
		switch v := v.(type) {
		case string:
			all = append(all, strings.ReplaceAll(v, "ROOT", root))
		case []imagecheck.Layer:
			var layers []imagecheck.Layer
			for _, l := range v {
				layers = append(layers, imagecheck.Layer{Path: strings.Replace(l.Path, "ROOT", root, 1), Format: l.Format})
			}
			all = append(all, layers)
		}
	}
	return all
}

// refusedWith checks the kind of an error, and words of it and of its hint.
func refusedWith(t *testing.T, err error, kind *failure.Kind, words, hint string) {
	t.Helper()
	if failure.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), words) || !strings.Contains(failure.HintOf(err), hint) {
		t.Errorf("got %v (%v)\nhint: %s\nwant %v: %s\nhint: %s", err, failure.KindOf(err), failure.HintOf(err), kind, words, hint)
	}
}

// Receipts that were written before origins were kept get theirs whenever
// somebody records copies.
func TestRecordKeepsBindingsInReceipts(t *testing.T) {
	root := t.TempDir()
	s := testService(t, root, &oneDomain{xml: boundTo(root, testMachine, "", "vda", "vdb")})
	setCopy(t, s, "vda", true)
	if err := s.record(t.Context(), testUUID); err != nil {
		t.Fatal(err)
	}
	all, err := localdisk.Receipts(s.Host.Layout, testUUID)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	want := "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='" + root + "/images/vda.raw'/></disk>"
	if r := all[0]; r.Fill != "now" || r.Origin != want || !r.Used || r.Size != 3072 {
		t.Errorf("got %+v", r)
	}
	// Not of a clone: what its metadata say is not about it, and stays so.
	clone := strings.Replace(boundTo(root, testMachine, "", "vda"), "domain='"+testUUID, "domain='22222222-2222-3333-4444-555555555555", 1)
	libvirt := &oneDomain{xml: strings.ReplaceAll(clone, "images/vda.raw", "images/other.raw")}
	was := libvirt.xml
	s.use(libvirt)
	if err := s.record(t.Context(), testUUID); err != nil {
		t.Fatal(err)
	}
	if again, err := localdisk.Receipts(s.Host.Layout, testUUID); err != nil || again[0].Origin != want {
		t.Errorf("got %+v, %v", again, err)
	}
	if libvirt.xml != was {
		t.Errorf("the clone was bound: %s", libvirt.xml)
	}
	if exists(filepath.Join(s.Host.Layout.Receipts(), testUUID, "vdb.json")) {
		t.Error("a receipt was made for a disk without copy")
	}
}
