// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"strings"
)

// volumeOfVM: the user vdsm has a volume attached that root has defined, in
// place of the VM's image, and QEMU's user keeps it whatever udev hears.
func volumeOfVM(m machine) {
	const device = "/dev/ovirt-local/managed"
	m.run("lvcreate", "-y", "-W", "n", "-L", "8m", "-n", "managed", "ovirt-local")
	defined := m.try(`{"driver_volume_type":"local","data":{"device_path":"`+device+`","discard":true}}`, "diskhook", "volume", "define", "--connection-info", "-", "mine")
	m.refused(defined, 0)
	v, other, link := vm{"managed", "first"}, vm{"other", "second"}, volumeLink("mine")
	property := []string{"volume=" + v.imageID() + "=mine"}

	r, after := m.point(v, "before_vm_start", property, v.xml("file", "file", v.path(v.leaf())))
	m.refused(r, 0)
	want := strings.Replace(v.xml("block", "dev", link), `io="threads" type="raw" error_policy="stop" cache="none"`, `io="native" type="raw" error_policy="stop" cache="none" discard="unmap"`, 1)
	if after != want {
		m.Errorf("the domain is\n%s, want\n%s", after, want)
	}
	for range 2 {
		if owner := m.run("stat", "-L", "-c", "%U:%G", link); owner != "vdsm:qemu" {
			m.Errorf("%s belongs to %s", link, owner)
		}
		m.run("udevadm", "trigger", "--settle", "--action", "change", device)
	}
	r, _ = m.point(other, "before_vm_start", []string{"volume=sda=mine"}, other.xml("file", "file", other.path(other.leaf())))
	m.refused(r, 2, "domain "+v.id()+" has it")
	m.refused(m.volume("detach", "mine"), 4, "domain "+v.id()+" has it")
	r, _ = m.point(v, "before_vm_migrate_source", property, after)
	m.refused(r, 2, "cannot be migrated")
	r, _ = m.point(other, "after_vm_destroy", []string{"volume=sda=mine"}, other.xml("file", "file", other.path(other.leaf())))
	m.refused(r, 0)
	if !exists(link) {
		m.Error("another VM's end has taken it away")
	}
	r, _ = m.point(v, "after_vm_destroy", property, after)
	m.refused(r, 0)
	rules, err := os.ReadDir("/run/udev/rules.d")
	if exists(link) || err != nil || len(rules) > 0 {
		m.Errorf("left: %v, %v", rules, err)
	}
	m.refused(m.volume("reconcile"), 0)
	m.refused(m.volume("undefine", "mine"), 0)
	m.run("lvremove", "-y", "ovirt-local/managed")
}
