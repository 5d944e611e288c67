// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const lyingSize = 24 << 20

// lying are two domains whose disks lie on the template of one base, with 64 KiB
// of each domain's own at 8 MiB: 0x51 and 0x52. Their sources are gone for good.
func lying(t *testing.T, names ...string) []*domain {
	t.Helper()
	base := filepath.Join(work, "images", names[0]+".raw")
	writeImage(t, base, diskImage(false))
	var domains []*domain
	for i, name := range names {
		d := newDomain(t, name)
		top := filepath.Join(d.dir, "top.qcow2")
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top, strconv.Itoa(lyingSize))
		run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P %d 8M 64k", 0x51+i), top)
		d.disks = diskXML("file", top, "qcow2", "vda")
		d.define()
		diskhook(t, 0, "domain", "apply", "--local", "vda=dir,template=overlay", d.name)
		says(t, d.dumped(), "type='qcow2'", "template=\"overlay\"")
		if err := os.Remove(top); err != nil {
			t.Fatal(err)
		}
		domains = append(domains, d)
	}
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	return domains
}

// lyingImage is what is on the disk of such a domain.
func lyingImage(own byte) []byte {
	image := make([]byte, lyingSize)
	copy(image, diskImage(false))
	copy(image[8<<20:], bytes.Repeat([]byte{own}, 64<<10))
	return image
}

// TestTemplateOverlay: two guests run on one copy of their base, which they have
// in common, and each has what it wrote.
func TestTemplateOverlay(t *testing.T) {
	domains := lying(t, "lying1", "lying2")
	found, err := filepath.Glob("/var/lib/diskhook/local/dhbase_*.raw")
	if err != nil || len(found) != 1 {
		t.Fatalf("templates %v, %v", found, err)
	}
	template := found[0]
	before := digest(t, template)
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

// TestTemplateOverlayIsGivenUp: a guest goes over to a raw copy while it runs,
// another one goes on with an export. Neither needs the template any more.
func TestTemplateOverlayIsGivenUp(t *testing.T) {
	domains := lying(t, "lyingraw", "lyingback")
	for _, d := range domains {
		d.start()
		d.boots(1)
	}
	d := domains[0]
	diskhook(t, 0, "local", "settle", "--raw", d.name, "vda")
	if s := d.state(); s != "running" {
		t.Fatalf("the guest is %s", s)
	}
	raw, err := os.Readlink(d.link())
	if err != nil || !strings.HasSuffix(raw, "_raw.raw") {
		t.Fatalf("the stable path leads to %s, %v", raw, err)
	}
	if exists(strings.TrimSuffix(d.copy(), ".raw") + ".qcow2") {
		t.Error("the overlay is left")
	}
	definition := d.dumped()
	says(t, definition, "type='raw'", "source file='"+d.link()+"'")
	if containsAny(definition, "template=", "type='qcow2'>") {
		t.Errorf("the definition still opens what lies on a template:\n%s", definition)
	}
	says(t, try(t, "/usr/bin/diskhook", "local", "gc").stdout, "1 copies lie on it")
	d.destroy()
	holds(t, raw, after(lyingImage(0x51), 1))
	d.start()
	d.boots(2)
	d.destroy()

	d = domains[1]
	exported := filepath.Join(d.dir, "exported.raw")
	says(t, diskhook(t, 4, "domain", "revert", "--export", exported, d.name), "virsh shutdown")
	if exists(exported) {
		t.Error("the disk of a running domain was exported")
	}
	d.destroy()
	diskhook(t, 0, "domain", "revert", "--export", exported, d.name)
	holds(t, exported, after(lyingImage(0x52), 1))
	says(t, d.dumped(), "type='raw'", "source file='"+exported+"'")
	if out := try(t, "/usr/bin/diskhook", "local", "gc").stdout; containsAny(out, "lie on it") {
		t.Errorf("gc:\n%s", out)
	}
	d.start()
	d.boots(2)
	d.destroy()
	holds(t, exported, after(lyingImage(0x52), 2))
	diskhook(t, 0, "domain", "revert", "--discard-guest-data", domains[0].name)
	if left, err := filepath.Glob("/var/lib/diskhook/local/dh_*" + domains[0].uuid + "*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
