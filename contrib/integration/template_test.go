// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTemplateOverlay: two guests run on one copy of their base, which they have
// in common, and each has what it wrote.
func TestTemplateOverlay(t *testing.T) {
	base := filepath.Join(work, "images", "lying.raw")
	writeImage(t, base, diskImage(false))
	domains := []*domain{newDomain(t, "lying1"), newDomain(t, "lying2")}
	for i, d := range domains {
		top := filepath.Join(d.dir, "top.qcow2")
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, "24M")
		run(t, "qemu-io", "-f", "qcow2", "-c", []string{"write -q -P 0x51 8M 64k", "write -q -P 0x52 8M 64k"}[i], top)
		d.disks = diskXML("file", top, "qcow2", "vda")
		d.define()
		diskhook(t, 0, "domain", "apply", "--local", "vda=dir,template=overlay", d.name)
		says(t, d.dumped(), "type='qcow2'", "template=\"overlay\"")
		if err := os.Remove(top); err != nil {
			t.Fatal(err)
		}
	}
	found, err := filepath.Glob("/var/lib/diskhook/local/dhbase_*.raw")
	if err != nil || len(found) != 1 {
		t.Fatalf("templates %v, %v", found, err)
	}
	template := found[0]
	before := digest(t, template)
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	for _, d := range domains {
		d.start()
		d.boots(1)
	}
	says(t, try(t, "/usr/bin/diskhook", "local", "gc").stdout, template, "2 copies lie on it")
	domains[0].destroy()
	domains[1].boots(1)
	domains[1].destroy()
	domains[0].start() // the labels of the template were given back
	domains[0].boots(2)
	domains[0].destroy()
	for i, d := range domains {
		overlay := strings.TrimSuffix(d.copy(), ".raw") + ".qcow2"
		run(t, "qemu-io", "-r", "-f", "qcow2", "-c", []string{"read -q -P 0x51 8M 64k", "read -q -P 0x52 8M 64k"}[i], overlay)
		if st, err := os.Stat(overlay); err != nil || st.Size() > 4<<20 {
			t.Errorf("%s has %v, %v", overlay, st, err)
		}
	}
	if now := digest(t, template); now != before {
		t.Error("the template was written to")
	}
	for _, d := range domains {
		diskhook(t, 0, "local", "remove", "--discard-guest-data", d.name, "vda")
	}
	if out := try(t, "/usr/bin/diskhook", "local", "gc").stdout; strings.Contains(out, "lie on it") {
		t.Errorf("gc:\n%s", out)
	}
}
