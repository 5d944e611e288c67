// SPDX-License-Identifier: Apache-2.0

package xmlrewrite_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "diskhook/xmlrewrite"
)

// TestLibvirtKeepsBindings lets libvirt itself take a bound domain in and give
// it out again. Its test driver lives in the library: there is no daemon.
//
// libvirt writes <metadata> with other quotes and other indentation, origin
// included. The disk, what is recorded of it, and the way back survive that:
// libvirt cannot tell a domain that was bound and unbound from one that never
// was.
func TestLibvirtKeepsBindings(t *testing.T) {
	if os.Getenv("SKIP_VIRT_XML_VALIDATE") == "1" {
		t.Skip("SKIP_VIRT_XML_VALIDATE=1")
	}
	for name, target := range map[string]string{"libvirt-file": "vda", "libvirt-rbd": "vda", "libvirt-nodriver": "hda", "libvirt-live": "sda", "virt-install": "vda"} {
		t.Run(name, func(t *testing.T) {
			in := forTestDriver(fixture(t, name+".in.xml"))
			in = bytes.Replace(in, []byte("  <metadata/>\n"), nil, 1) // an empty one goes with the binding
			never := define(t, in)

			doc := parse(t, in)
			was, _ := doc.Disk(target)
			bound, err := Apply(doc, bound(LocalDisk{Target: target, Path: stable, Block: true})(t, doc)...)
			if err != nil {
				t.Fatal(err)
			}
			kept := parse(t, define(t, bound.Bytes()))

			got, _ := kept.Disk(target)
			want, _ := bound.Disk(target)
			if diff := cmp.Diff(want.Source, got.Source); diff != "" || got.Driver.Cache != "none" || got.Driver.IO != "native" || got.Driver.Type != "raw" {
				t.Errorf("libvirt changed the disk: %+v\n%s", got, diff)
			}
			m, err := kept.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			wrote, _ := bound.Metadata()
			if diff := cmp.Diff(wrote, m, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Origin" }, cmp.Ignore())); diff != "" {
				t.Error("libvirt changed the metadata:\n" + diff)
			}
			b, ok := m.Disk(target)
			if !ok {
				t.Fatal("the disk is not in the metadata")
			}
			origin, err := b.OriginDisk()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(was.Source, origin.Source); diff != "" || !cmp.Equal(was.Chain, origin.Chain) || was.Terminated != origin.Terminated || was.Driver != origin.Driver {
				t.Errorf("the origin is %+v\n%s", origin, diff)
			}

			back, err := Apply(kept, RestoreOrigin{target}, RemoveMetadata{})
			if err != nil {
				t.Fatal(err)
			}
			if again := define(t, back.Bytes()); string(again) != string(never) {
				t.Errorf("bound and unbound is not what it was:\n%s", Diff(never, again, "never bound", "bound and unbound"))
			}
		})
	}
}

// forTestDriver makes a domain of the only type and machine that the driver has.
func forTestDriver(text []byte) []byte {
	text = regexp.MustCompile(`<domain type=['"]\w+['"]`).ReplaceAll(text, []byte("<domain type='test'"))
	return regexp.MustCompile(`<type [^>]*>`).ReplaceAll(text, []byte("<type>"))
}

// define has libvirt check, define and write out a domain.
func define(t *testing.T, text []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "domain.xml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	virsh, err := exec.LookPath("virsh")
	if err != nil {
		t.Fatal("virsh is missing: apt-get install libvirt-clients, or set SKIP_VIRT_XML_VALIDATE=1")
	}
	doc := parse(t, text)
	cmd := exec.Command(virsh, "-q", "-c", "test:///default", "define --validate "+file+"; dumpxml --inactive --security-info "+doc.UUID())
	cmd.Env = []string{"HOME=" + dir, "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("virsh: %v\n%s\n%s", err, errs.String(), text)
	}
	if at := strings.Index(string(out), "<domain "); at >= 0 {
		out = out[at:] // what define says comes first
	}
	return out
}
