// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// applied is a domain that `domain apply` bound and filled, and whose guest
// has run once on the copy.
func applied(t *testing.T, name string) *domain {
	t.Helper()
	d := bootable(t, name)
	diskhook(t, 0, "domain", "apply", "--local", "vda=dir", name)
	d.start()
	d.boots(1)
	d.destroy()
	return d
}

// clone defines d again under another name and UUID, as virt-clone does; its
// disks stay as they are.
func clone(t *testing.T, d *domain, name string) *domain {
	t.Helper()
	c := newDomain(t, name)
	text := strings.Replace(d.dumped(), "<uuid>"+d.uuid, "<uuid>"+c.uuid, 1)
	text = strings.Replace(text, "<name>"+d.name, "<name>"+name, 1)
	c.defineAs(strings.Replace(text, d.serial(), c.serial(), 1))
	return c
}

// TestClone: a clone has the metadata of the domain that it was made from, and
// must get at neither its copy nor its receipt.
func TestClone(t *testing.T) {
	d := applied(t, "first")
	copied, known := digest(t, d.copy()), d.receipt()

	c := clone(t, d, "clone-unbound")
	c.startVetoed("domain clone-unbound", "clone", d.uuid, "diskhook domain rebind clone-unbound", "diskhook domain unbind clone-unbound")
	says(t, diskhook(t, 4, "domain", "apply", "--local", "vda", "clone-unbound"), "diskhook domain rebind clone-unbound")
	says(t, diskhook(t, 4, "domain", "revert", "--discard-guest-data", "clone-unbound"), "diskhook domain unbind clone-unbound")
	says(t, diskhook(t, 10, "domain", "unbind", "-n", "clone-unbound"), "-      <source file='"+d.link(), "+      <source file=\""+d.image())
	diskhook(t, 0, "domain", "unbind", "clone-unbound")
	if text := c.dumped(); strings.Contains(text, "urn:diskhook:1") || !strings.Contains(text, d.image()) {
		t.Errorf("unbound, it is\n%s", text)
	}
	c.start()
	c.boots(1) // on the source, where no guest has run
	c.destroy()
	holds(t, d.image(), after(diskImage(false), 1))
	writeImage(t, d.image(), diskImage(false))

	c = clone(t, d, "clone-rebound")
	says(t, diskhook(t, 0, "domain", "rebind", "clone-rebound"), "what domain "+d.uuid+" wrote since is not in it")
	c.start()
	c.linked(true)
	c.boots(1)
	c.destroy()
	holds(t, c.copy(), after(diskImage(false), 1))
	diskhook(t, 0, "domain", "rebind", "clone-rebound") // nothing to do
	c.start()
	c.boots(2)
	c.destroy()

	if digest(t, d.copy()) != copied || *d.receipt() != *known {
		t.Error("the copy or the receipt of the first domain was changed")
	}
	holds(t, d.image(), diskImage(false))
	d.start()
	d.boots(2)
}

// TestRename: nothing on the host is named by the domain's name.
func TestRename(t *testing.T) {
	d := applied(t, "before")
	known := d.receipt()
	run(t, "virsh", "-q", "domrename", "before", "after")
	d.start()
	d.linked(true)
	d.boots(2)
	d.destroy()
	if *d.receipt() != *known {
		t.Error("the receipt was changed")
	}
	says(t, diskhook(t, 0, "domain", "apply", "--local", "vda", "after"), "nothing to do")
}

// TestSnapshot: an external snapshot puts an image on top of the copy. A start
// makes the copy below it ready, and nothing may take it away.
func TestSnapshot(t *testing.T) {
	d := applied(t, "snapshot")
	overlay := filepath.Join(d.dir, "overlay.qcow2")
	d.start()
	d.boots(2)
	run(t, "virsh", "-q", "snapshot-create-as", d.uuid, "s1", "--disk-only", "--no-metadata", "--diskspec", "vda,file="+overlay)
	d.destroy()
	d.linked(false)
	if text := d.dumped(); !strings.Contains(text, "<source file='"+overlay+"'") {
		t.Fatalf("no snapshot in\n%s", text)
	}

	d.start()
	d.linked(true)
	d.boots(3)
	d.destroy()
	d.linked(false)
	holds(t, d.copy(), after(diskImage(false), 2))

	says(t, diskhook(t, 4, "domain", "apply", "--refresh", "snapshot"), overlay, "newest writes", "virsh blockcommit snapshot vda --active --pivot")
	says(t, diskhook(t, 4, "domain", "revert", "--discard-guest-data", "snapshot"), overlay, "virsh blockcommit snapshot vda --active --pivot")

	d.start()
	d.boots(4)
	run(t, "virsh", "-q", "blockcommit", d.uuid, "vda", "--active", "--pivot", "--wait")
	d.destroy()
	d.start()
	d.boots(5)
	d.destroy()
	holds(t, d.copy(), after(diskImage(false), 5))
}

// TestEdit: a disk that was pointed elsewhere is refused, and so is to accept
// that while the guest's data is in a copy of something else; put back, it
// starts as before.
func TestEdit(t *testing.T) {
	d := applied(t, "edited")
	bound := d.dumped()
	other := filepath.Join(d.dir, "other.raw")
	writeImage(t, other, diskImage(false))
	d.defineAs(strings.Replace(d.dumped(), "<source file='"+d.link(), "<source file='"+other, 1))
	d.startVetoed("its source was "+d.link()+" when it was bound, it is now "+other, "diskhook domain apply --refresh edited")
	says(t, diskhook(t, 4, "domain", "apply", "edited"), "diskhook domain apply --refresh edited")

	says(t, diskhook(t, 4, "domain", "apply", "--refresh", "edited"), "what the guest wrote is in its local copy",
		"virsh edit edited", "diskhook domain revert --export FILE edited vda")
	d.defineAs(bound)
	d.start()
	d.linked(true)
	d.boots(2)
	d.destroy()
	holds(t, d.copy(), after(diskImage(false), 2))
	holds(t, other, diskImage(false))
	holds(t, d.image(), diskImage(false))
}

// TestWaysOut runs what the messages say.
func TestWaysOut(t *testing.T) {
	t.Run("recreate a lost copy", func(t *testing.T) {
		d := applied(t, "lost")
		rename(t, d.copy(), d.copy()+".lost")
		d.startVetoed("diskhook local recreate --discard-guest-data lost vda")
		diskhook(t, 0, "local", "recreate", "--discard-guest-data", "lost", "vda")
		d.start()
		d.boots(1)
	})
	t.Run("adopt a copy without receipt", func(t *testing.T) {
		d := applied(t, "adopted")
		rename(t, d.receiptPath(), d.receiptPath()+".lost")
		d.startVetoed("diskhook local adopt adopted vda")
		diskhook(t, 0, "local", "adopt", "adopted", "vda")
		d.start()
		d.boots(2)
	})
	t.Run("adopt a copy with a damaged receipt", func(t *testing.T) {
		d := applied(t, "damaged")
		writeImage(t, d.receiptPath(), []byte("{"))
		d.startVetoed("not understood", "remove it and take the copy over with `diskhook local adopt "+d.uuid+" vda`")
		if err := os.Remove(d.receiptPath()); err != nil {
			t.Fatal(err)
		}
		diskhook(t, 0, "local", "adopt", d.uuid, "vda")
		d.start()
		d.boots(2)
	})
	t.Run("bind a forsaken disk again", func(t *testing.T) {
		d := applied(t, "forsaken")
		text := d.dumped()
		from, to := strings.Index(text, "  <metadata>"), strings.Index(text, "  <memory")
		d.defineAs(strings.Replace(text[:from]+text[to:], "<source file='"+d.link(), "<source file='"+d.image(), 1))
		d.startVetoed("its data is in the local copy", "diskhook domain apply --bind vda:local=dir forsaken")
		diskhook(t, 0, "domain", "apply", "--bind", "vda:local=dir", "forsaken")
		d.start()
		d.boots(2)
	})
	t.Run("unbind what a newer diskhook wrote", func(t *testing.T) {
		d := bootable(t, "newer")
		d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
		d.metadata = strings.Replace(d.metadata, "dh:local", "dh:tape", 1)
		d.define()
		d.startVetoed("diskhook domain unbind newer")
		diskhook(t, 0, "domain", "unbind", "newer")
		d.start()
		d.boots(1)
	})
	t.Run("go back from what a newer diskhook wrote", func(t *testing.T) {
		d := applied(t, "newer-used")
		d.defineAs(strings.Replace(d.dumped(), "dh:local", "dh:tape", 1))
		d.startVetoed("diskhook domain unbind newer-used")
		says(t, diskhook(t, 4, "domain", "unbind", "newer-used"), "local copies of its own", "diskhook domain revert newer-used")
		diskhook(t, 4, "domain", "revert", "newer-used")
		exported := filepath.Join(d.dir, "exported.raw")
		diskhook(t, 0, "domain", "revert", "--export", exported, "newer-used")
		holds(t, exported, after(diskImage(false), 1))
		holds(t, d.image(), diskImage(false))
		d.start()
		d.boots(2)
	})
	t.Run("unbind damaged metadata", func(t *testing.T) {
		d := bootable(t, "unreadable")
		d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
		d.disks = diskXML("file", d.image(), "raw", "vda")
		d.metadata = strings.Replace(d.metadata, "target='vda'", "target=''", 1)
		d.define()
		d.startVetoed("diskhook domain unbind unreadable")
		diskhook(t, 0, "domain", "unbind", "unreadable")
		d.start()
		d.boots(1)
	})
}
