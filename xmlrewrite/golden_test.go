// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

var update = flag.Bool("update", false, "write testdata/domains/*.out.xml anew")

const fixtures = "../testdata/domains"

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parse(t testing.TB, b []byte) *Document {
	t.Helper()
	doc, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func local(target, kind string, l LocalDisk) rewriters {
	l.Target, l.Block = target, kind == "block"
	return func(t testing.TB, doc *Document) []Rewriter { return []Rewriter{l} }
}

// bound rewrites a disk and records it, as applying a binding does.
func bound(l LocalDisk) rewriters {
	return func(t testing.TB, doc *Document) []Rewriter {
		origin, err := doc.Origin(l.Target)
		if err != nil {
			t.Fatal(err)
		}
		disk, _ := doc.Disk(l.Target)
		return []Rewriter{l, SetMetadata{[]BoundDisk{{
			Target: l.Target, Serial: disk.Serial, Source: l.Path, Origin: origin,
			Local: &Local{Backend: "lvmthin", Fill: "now", OnStop: "keep", Copy: "8f1e", Host: "0123456789abcdef0123456789abcdef"},
		}}}}
	}
}

// imaged makes a disk an image of a repository and records it, as applying a
// binding does.
func imaged(target, format string, block bool) rewriters {
	return func(t testing.TB, doc *Document) []Rewriter {
		path := "/run/diskhook/images/" + doc.UUID() + "/" + target + "/disk"
		origin, err := doc.Origin(target)
		if err != nil {
			t.Fatal(err)
		}
		disk, _ := doc.Disk(target)
		return []Rewriter{VolumeDisk{Target: target, Path: path, Block: block, Format: format, Discard: true}, SetMetadata{[]BoundDisk{{
			Target: target, Serial: disk.Serial, Source: path, Origin: origin,
			Image: &Image{Repo: "fast", ID: "8c7d3b52-0d1c-4b52-9f0e-3b1f6a2c9d10", Format: format},
		}}}}
	}
}

// thinned makes a disk a volume of a thin cluster and records it.
func thinned(target string) rewriters {
	return func(t testing.TB, doc *Document) []Rewriter {
		path := "/run/diskhook/thin-disks/" + doc.UUID() + "/" + target
		origin, err := doc.Origin(target)
		if err != nil {
			t.Fatal(err)
		}
		disk, _ := doc.Disk(target)
		return []Rewriter{VolumeDisk{Target: target, Path: path, Block: true, Discard: true}, SetMetadata{[]BoundDisk{{
			Target: target, Serial: disk.Serial, Source: path, Origin: origin, Thin: &Thin{Cluster: "san", Volume: "vm1"},
		}}}}
	}
}

// copied is a local copy that is made of an image.
func copied(l LocalDisk) rewriters {
	return func(t testing.TB, doc *Document) []Rewriter {
		changes := bound(l)(t, doc)
		changes[1].(SetMetadata).Disks[0].OriginImage = &Image{Repo: "fast", ID: "0d5f4b1e-7f0c-4f0e-9a51-5c1f1f1b6f55"}
		return changes
	}
}

type rewriters func(testing.TB, *Document) []Rewriter

const stable = "/run/diskhook/disks/5e2d7f0a-0d1c-4b52-9f0e-3b1f6a2c9d10/vda"

// golden ties each *.out.xml to the *.in.xml and the rewrite that make it.
var golden = []struct {
	in, out string
	rewriters
}{
	{"libvirt-file", "libvirt-file.local", bound(LocalDisk{Target: "vda", Path: stable, Block: true})},
	{"libvirt-file", "libvirt-file.overlay", local("vda", "file", LocalDisk{Path: stable, Format: "qcow2", Cache: "writeback"})},
	{"libvirt-file", "libvirt-file.image", imaged("vda", "qcow2", false)},
	{"libvirt-file", "libvirt-file.image-copy", copied(LocalDisk{Target: "vda", Path: stable})},
	{"libvirt-file", "libvirt-file.thin", thinned("vda")},
	{"libvirt-rbd", "libvirt-rbd.thin", thinned("vda")},
	{"virt-install", "virt-install.thin", thinned("vda")},
	{"libvirt-rbd", "libvirt-rbd.image", imaged("vda", "raw", true)},
	{"virt-install", "virt-install.image", imaged("vda", "raw", false)},
	{"libvirt-rbd", "libvirt-rbd.local", bound(LocalDisk{Target: "vda", Path: stable})},
	{"libvirt-nodriver", "libvirt-nodriver.local", bound(LocalDisk{Target: "hda", Path: stable, Cache: "writethrough", Block: true})},
	{"libvirt-live", "libvirt-live.local", bound(LocalDisk{Target: "sda", Path: stable, Block: true, Cache: "directsync"})},
	{"libvirt-bound", "libvirt-bound.restored", func(testing.TB, *Document) []Rewriter {
		return []Rewriter{RestoreOrigin{"vda"}, RemoveMetadata{}}
	}},
	{"virt-install", "virt-install.local", bound(LocalDisk{Target: "vda", Path: stable})},
	{"vdsm-mixed", "vdsm-mixed.local", func(testing.TB, *Document) []Rewriter {
		return []Rewriter{LocalDisk{Target: "sda", Path: "/dev/ovirt-local/1dfad482", Block: true}, LocalDisk{Target: "sdb", Path: "/dev/ovirt-local/b3335e60", Block: true}}
	}},
	{"odd-spelling", "odd-spelling.local", bound(LocalDisk{Target: "vda", Path: stable})},
	{"compact", "compact.local", bound(LocalDisk{Target: "vda", Path: stable})},
	{"quorum-seed", "libvirt-quorum.export", voted("vda", exported(ExportQuorum{Name: "db"}))},
	{"quorum-seed", "libvirt-quorum.inline", voted("vda", inlined)},
	{"quorum-seed", "quorum-seed.same", voted("vda", produced)},
	{"quorum-args", "quorum-args.same", voted("vdb", produced)},
	{"quorum-args", "quorum-args.inline", func(t testing.TB, doc *Document) []Rewriter {
		both := InlineQuorum{RawNode: RawNodeStorage}
		for _, q := range quorums(t, doc) {
			both.Disks = append(both.Disks, InlineDisk{*q, "votes-" + q.Target})
		}
		return []Rewriter{both}
	}},
	{"libvirt-shared", "libvirt-shared.vhostuser", voting("vda", exported(ExportQuorum{VhostUser: true, Reconnect: 1}))},
	{"libvirt-shared", "libvirt-shared.inline", voting("vda", inlined)},
	{"libvirt-file", "quorum-file.none", voting("vda", produced)},
	{"libvirt-nodriver", "libvirt-nodriver.export", voting("hda", exported(ExportQuorum{Name: "db"}))},
	{"libvirt-rbd", "libvirt-rbd.export", voting("vda", exported(ExportQuorum{Name: "it's"}))},
	{"vdsm-mixed", "vdsm-mixed.quorum", voting("sda", produced)},
	{"vdsm-mixed", "vdsm-mixed.inline", voting("sda", inlined)},
	{"odd-spelling", "odd-spelling.export", voting("vda", exported(ExportQuorum{Name: "db", Reconnect: 30}))},
	{"compact", "compact.quorum", voting("vda", produced)},
	{"hotplug", "hotplug.quorum", voting("sdb", produced)},
	{"hotplug", "hotplug.local", local("sdb", "block", LocalDisk{Path: "/dev/vg/copy", IO: "io_uring"})},
}

func TestGolden(t *testing.T) {
	for _, g := range golden {
		t.Run(g.out, func(t *testing.T) {
			in := fixture(t, g.in+".in.xml")
			doc := parse(t, in)
			out, err := Apply(doc, g.rewriters(t, doc)...)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(doc.Bytes(), in) {
				t.Error("Apply changed the document it was given")
			}
			path := filepath.Join(fixtures, g.out+".out.xml")
			if *update {
				if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want := fixture(t, g.out+".out.xml")
			if got := out.Bytes(); !bytes.Equal(got, want) {
				t.Errorf("differs from %s:\n%s", path, Diff(want, got, "want", "got"))
			}
			if again := parse(t, out.Bytes()); !cmp.Equal(again.Disks(), out.Disks()) {
				t.Error("the document reads differently after writing")
			}
		})
	}
}

// TestGoldenFiles finds fixtures that no test uses.
func TestGoldenFiles(t *testing.T) {
	used := map[string]bool{}
	for _, g := range golden {
		used[g.in+".in.xml"], used[g.out+".out.xml"] = true, true
	}
	for _, pattern := range []string{"*.in.xml", "*.out.xml"} {
		files, err := filepath.Glob(filepath.Join(fixtures, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no fixtures %s: %v", pattern, err)
		}
		for _, f := range files {
			if !used[filepath.Base(f)] {
				t.Errorf("%s is in no test", f)
			}
		}
	}
}

// TestNoOp: reading and writing, and editing without a change, give the bytes
// that went in.
func TestNoOp(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(fixtures, "*.xml"))
	if len(files) < 10 {
		t.Fatalf("only %d fixtures", len(files))
	}
	for _, f := range files {
		in := fixture(t, filepath.Base(f))
		doc := parse(t, in)
		checkNoOp(t, doc, in)
	}
}

// TestSchema asks libvirt's own schema about what the rewriters make of
// libvirt's own style.
func TestSchema(t *testing.T) {
	if os.Getenv("SKIP_VIRT_XML_VALIDATE") == "1" {
		t.Skip("SKIP_VIRT_XML_VALIDATE=1")
	}
	validate, err := exec.LookPath("virt-xml-validate")
	if err != nil {
		t.Fatal("virt-xml-validate is missing: apt-get install libvirt-clients libvirt0 libxml2-utils, or set SKIP_VIRT_XML_VALIDATE=1")
	}
	n := 0
	for _, g := range golden {
		if !strings.HasPrefix(g.out, "libvirt-") && !strings.HasPrefix(g.out, "virt-install") {
			continue
		}
		n++
		out, err := exec.Command(validate, filepath.Join(fixtures, g.out+".out.xml"), "domain").CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", g.out, err, out)
		}
	}
	if n < 5 {
		t.Fatalf("only %d files validated", n)
	}
}

// TestRoundTrip: binding a disk and taking the binding back gives the first
// text again, where the disk's parts stood in libvirt's order.
func TestRoundTrip(t *testing.T) {
	for _, name := range []string{"libvirt-file", "libvirt-rbd", "virt-install", "vdsm-mixed", "compact"} {
		in := fixture(t, name+".in.xml")
		doc := parse(t, in)
		for _, d := range doc.Disks() {
			l := LocalDisk{Target: d.Target, Path: "/copy"}
			if _, err := Apply(doc, l); err != nil {
				continue
			}
			there, err := Apply(doc, bound(l)(t, doc)...)
			if err != nil {
				t.Fatal(err)
			}
			back, err := Apply(there, RestoreOrigin{d.Target}, RemoveMetadata{})
			if err != nil {
				t.Fatal(err)
			}
			if got := back.Bytes(); !bytes.Equal(got, in) {
				t.Errorf("%s, disk %s:\n%s", name, d.Target, Diff(in, got, "before", "after"))
			}
		}
	}
}
