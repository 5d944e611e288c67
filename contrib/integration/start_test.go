// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"testing"
)

// TestStart follows a disk through two runs of its guest: it does not exist
// until the hook makes it, and then it stays what the guest made of it.
func TestStart(t *testing.T) {
	d := newDomain(t, "start")
	image := diskImage(false)
	top := chain(t, d.dir, image)
	d.bind("fill='start'", diskXML("file", top, "qcow2", "vda"))
	d.define()
	source := digest(t, filepath.Join(d.dir, "base.raw"), filepath.Join(d.dir, "middle.qcow2"), top)
	d.linked(false)
	if exists(d.copy()) {
		t.Fatal("there is a copy before the first start")
	}

	d.start()
	d.linked(true)
	d.boots(1)
	holds(t, d.copy(), after(image, 1))
	first := d.receipt()
	if first == nil || !first.Used {
		t.Fatalf("receipt of a running guest: %+v", first)
	}
	d.destroy()
	d.linked(false)
	if exists(filepath.Dir(d.link())) {
		t.Error("the folder of the domain's links is left")
	}
	holds(t, d.copy(), after(image, 1))
	if now := digest(t, filepath.Join(d.dir, "base.raw"), filepath.Join(d.dir, "middle.qcow2"), top); now != source {
		t.Error("the source was changed")
	}

	// The source's storage is away, folder and all.
	for _, name := range []string{"base.raw", "middle.qcow2", "top.qcow2"} {
		defer moved(t, filepath.Join(d.dir, name))()
	}
	d.start()
	d.boots(2)
	d.destroy()
	holds(t, d.copy(), after(image, 2))
	if again := d.receipt(); *again != *first {
		t.Errorf("receipt %+v, not %+v: the disk was copied again", again, first)
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("unfinished copies are left: %q", left)
	}
}

// leftovers are files of copies that are not complete.
func leftovers(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob("/var/lib/diskhook/local/*.partial*")
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// TestStartNeverCopies with fill=now: that is for the verbs.
func TestStartNeverCopies(t *testing.T) {
	d := newDomain(t, "now")
	image := diskImage(false)
	writeImage(t, d.image(), image)
	d.bind("fill='now'", diskXML("file", d.image(), "raw", "vda"))
	d.define()
	d.startVetoed("domain now: disk vda: ", "absent", "fill=now", "run `diskhook local prestage now`")
	if exists(d.copy()) || d.receipt() != nil || exists(d.link()) {
		t.Error("the refused start left something")
	}

	diskhook(t, 0, "local", "prestage", "now")
	holds(t, d.copy(), image)
	d.linked(false)
	if r := d.receipt(); r == nil || r.Used {
		t.Errorf("receipt of a copy that no guest has used: %+v", r)
	}
	d.start()
	d.boots(1)
	d.destroy()
	holds(t, d.copy(), after(image, 1))
	holds(t, d.image(), image)
}

// TestGuestPowersOff: a stop that nobody asked libvirt for.
func TestGuestPowersOff(t *testing.T) {
	d := newDomain(t, "poweroff")
	image := diskImage(true)
	writeImage(t, d.image(), image)
	d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
	d.define()
	for n := range 2 {
		d.start()
		eventually(t, func() bool { return d.state() == "shut off" }, "the guest does not power off")
		d.boots(n + 1)
		eventually(t, func() bool { return !exists(d.link()) }, "the stable path stays")
		holds(t, d.copy(), after(image, byte(n+1)))
	}
	holds(t, d.image(), image)
}

// TestUnbound: a domain that diskhook has nothing to do with is what it is
// without diskhook.
func TestUnbound(t *testing.T) {
	before := digest(t, "/var/lib/diskhook")
	d := bootable(t, "plain")
	definition := d.dumped()
	d.start()
	d.boots(1)
	d.destroy()
	holds(t, d.image(), after(diskImage(false), 1))
	if d.dumped() != definition {
		t.Error("its definition changed")
	}
	if digest(t, "/var/lib/diskhook") != before || exists("/run/diskhook/disks/"+d.uuid) {
		t.Error("diskhook left something")
	}
	if _, err := os.Stat("/run/diskhook/hook.log"); err == nil {
		if log := content(t, "/run/diskhook/hook.log"); containsAny(log, d.uuid, "domain=plain") {
			t.Errorf("diskhook was at work:\n%s", log)
		}
	}
}
