// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
)

func (m machine) virsh(args ...string) string {
	m.Helper()
	return m.run("virsh", append([]string{"-q", "-c", "qemu:///system"}, args...)...)
}

// booting is the domain that starts with the host.
func booting() domain { return named("booting", disk{"vda", "lvm", "three"}) }

// underLibvirtd applies a domain, starts it, and leaves it to be started with
// the host. libvirtd is killed while a copy is made for another.
func underLibvirtd(m machine) {
	m.run("systemctl", "start", "libvirtd")
	d := booting()
	m.write(d.file(), d.plain(), 0o600)
	m.virsh("define", d.file())
	m.run("diskhook", "domain", "apply", "--local", "vda=lvm", d.name)
	if xml := m.virsh("dumpxml", "--inactive", d.name); !strings.Contains(xml, d.link("vda")) || !strings.Contains(xml, "type='block'") {
		m.Errorf("after apply: %s", xml)
	}
	m.virsh("start", d.name)
	if lv := m.lv(d.copyName("vda"), "lv_device_open"); lv[0] != "open" {
		m.Errorf("the copy of a running domain: %s", lv[0])
	}
	m.same(d)
	m.virsh("destroy", d.name)
	m.within("release", func() bool { return !exists(d.node("vda")) })

	late := named("late", disk{"vda", "lvmthin", "slow"})
	m.virsh("define", m.bind(late).file())
	m.configured(map[string]string{"local.rate": `"512KiB"`})
	starting := make(chan result, 1)
	go func() { starting <- m.try("", "virsh", "-q", "-c", "qemu:///system", "start", late.name) }()
	m.within("the copy begins", func() bool { return copied(late.id, "vda") > 0 })
	made := m.lv(late.copyName("vda"), "lv_uuid")[0]
	m.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "libvirtd")
	m.run("systemctl", "restart", "libvirtd")
	if r := <-starting; r.code == 0 {
		m.Errorf("a start outlived its libvirtd: %s", r.output)
	}
	m.within("the copy ends", func() bool { return copied(late.id, "vda") < 0 })
	if r := m.receipt(late.id, "vda"); r == nil || r.Copy != made {
		m.Errorf("the copy did not go on without libvirtd: %+v", r)
	}
	m.configure(nil)
	m.unchangedBut(late.copyName("vda"), func() { m.virsh("start", late.name) })
	m.same(late)
	m.virsh("destroy", late.name)

	// What the guest wrote, for the time after the reboot.
	m.run("lvchange", "-ay", "-K", "ovirt-local/"+d.copyName("vda"))
	m.writes(d.node("vda"), 0x99, 7<<20)
	m.deactivate(d.copyName("vda"))
	m.virsh("autostart", d.name)
	m.run("systemctl", "enable", "libvirtd")
}

// afterReboot finds the domain running that libvirtd starts by itself, though
// nobody has mounted the shared storage.
func afterReboot(m machine) {
	d := booting()
	m.within("autostart", func() bool {
		r := m.try("", "virsh", "-q", "-c", "qemu:///system", "domstate", d.name)
		return r.code == 0 && strings.TrimSpace(r.output) == "running"
	})
	if exists(d.disks[0].source()) {
		m.Fatal("the shared storage is there")
	}
	if lv := m.lv(d.copyName("vda"), "lv_device_open"); lv[0] != "open" {
		m.Errorf("the copy of a running domain: %s", lv[0])
	}
	m.reads(d.link("vda"), 0x99, 7<<20)
	// Nothing that is not running has been activated by the boot.
	if other := web(); exists(other.node("vda")) {
		m.Error("the boot activated a copy that no domain uses")
	}
	m.virsh("destroy", d.name)
	m.within("release", func() bool { return !exists(d.node("vda")) && !exists(d.link("vda")) })
}
