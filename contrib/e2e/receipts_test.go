// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
)

// withoutCopy: a copy that a guest has written to and that is not there, or
// not the same, is never made again by a start.
func withoutCopy(m machine) {
	d := named("twin", disk{"vda", "lvm", "three"})
	lv := d.copyName("vda")
	m.started(d)
	m.writes(d.link("vda"), 0x42, 5<<20)
	m.stopped(d)

	m.run("lvrename", "ovirt-local", lv, "aside")
	m.unchanged(func() {
		m.vetoed(d, "disk vda", lv, "is gone", "the guest has written to it", "diskhook local recreate --discard-guest-data twin vda")
	})
	m.run("lvcreate", "-y", "-Wy", "-n", lv, "-L", "28m", "-ky", "-ay", "-K", "--addtag", "VM_"+d.id, "--addtag", "DH_v1", "ovirt-local")
	m.unchanged(func() { m.vetoed(d, "disk vda", "another volume took its place", "diskhook local adopt twin vda") })
	m.run("lvchange", "--addtag", "UPDATING", "ovirt-local/"+lv)
	m.unchanged(func() { m.vetoed(d, "disk vda", lv, "UPDATING") })
	if exists(d.link("vda")) {
		m.Error("a vetoed disk has its path")
	}
	m.run("lvremove", "-y", "ovirt-local/"+lv)

	m.run("lvrename", "ovirt-local", "aside", lv)
	m.started(d)
	m.reads(d.link("vda"), 0x42, 5<<20)
	m.stopped(d)
}

// openVolume: what somebody has open is not removed, whatever its tags say.
func openVolume(m machine) {
	d := m.bind(named("open", disk{"vda", "lvm", "four"}))
	lv := d.copyName("vda")
	m.run("lvcreate", "-y", "-Wy", "-n", lv, "-L", "28m", "-ky", "-ay", "-K", "--addtag", "VM_"+d.id, "--addtag", "UPDATING", "ovirt-local")
	holder, err := os.Open(d.node("vda"))
	m.must(err)
	m.unchanged(func() { m.vetoed(d, "disk vda", lv, "is open", "is not removed", "lsof") })
	m.must(holder.Close())
	// An unfinished copy that nobody has open and no guest used is made again.
	m.started(d)
	m.same(d)
	// A running domain's copy stays, whatever is said.
	guest, err := os.Open(d.node("vda"))
	m.must(err)
	m.unchanged(func() {
		m.refused(m.try("", "diskhook", "local", "remove", "--discard-guest-data", d.id, "vda"), 4, lv, "open")
	})
	m.must(guest.Close())
	m.stopped(d)
	m.run("diskhook", "local", "remove", "--discard-guest-data", d.id, "vda")
	m.nothingLeft(d, "vda")
}
