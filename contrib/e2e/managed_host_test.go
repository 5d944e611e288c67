// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestManagedHost is a host whose volumes come from iSCSI and NVMe targets, by
// way of open-iscsi, multipath-tools and nvme-cli. The targets are the
// kernel's. Its power goes while volumes are attached; the domain that has two
// of them starts with the host.
func TestManagedHost(t *testing.T) {
	host{
		install: "install",
		boots: []boot{
			{"volumes", volumes, powerCut},
			{"after the power cut", volumesAfterPowerCut, inOrder},
		},
	}.run(t)
}

// hosted is the domain that has an iSCSI volume and an NVMe namespace.
func hosted() domain {
	return named("hosted", disk{"vda", "", "gone/hosted.raw"}, disk{"vdb", "", "gone/space2.raw"})
}

func volumes(m machine) {
	m.install()
	m.targets()
	m.run("systemctl", "start", "iscsid.socket")
	m.defineAll()
	m.volumeScenarios([]volumeScenario{
		{"one path", onePath},
		{"password", password},
		{"target goes, one path", targetGoes("one")},
	})
	m.run("systemctl", "start", "multipathd.service")
	m.volumeScenarios([]volumeScenario{
		{"two portals", twoPortals},
		{"discovered", discovered},
		{"lun 300", farLUN},
		{"partitions", partitions},
		{"a guest's volume group", guestGroup},
		{"grown", grown},
		{"another volume", anotherVolume},
		{"another volume behind what was left", anotherVolumeBehind},
		{"a portal goes", portalGoes},
		{"target goes, two paths", targetGoes("twice")},
		{"paths vanish", pathsVanish},
		{"namespaces", namespaces},
		{"volume of this host", localVolume},
		{"file on a server", serverFileVolume},
		{"VDSM's helper", vdsmHelper},
		{"secrets", secrets},
		{"domain", domainWithVolumes},
	})
	if m.Failed() {
		return
	}
	m.run("sync")
	m.attached("twice")
	m.attached("locked")
	m.cutPower()
}

type volumeScenario struct {
	name string
	do   func(machine)
}

// volumeScenarios runs scenarios, and takes away what one that failed left
// attached, so that the next says something of its own.
func (m machine) volumeScenarios(all []volumeScenario) {
	for _, s := range all {
		m.scenario(s.name, s.do)
		if m.Failed() {
			for id := range definitions() {
				m.try("", "diskhook", "volume", "detach", id)
			}
		}
	}
}

// domainWithVolumes leaves a domain that starts with the host, running.
func domainWithVolumes(m machine) {
	m.run("systemctl", "start", "libvirtd")
	d := hosted()
	m.write(d.file(), d.plain(), 0o600)
	m.virsh("define", d.file())
	m.run("diskhook", "domain", "apply", "--volume", "vda=hosted", "--volume", "vdb=space2", d.name)
	m.virsh("start", d.name)
	m.refused(m.volume("detach", "hosted"), 4, "domain "+d.id+" has it")
	m.virsh("destroy", d.name)
	m.noneLeft()
	m.virsh("start", d.name)
	m.virsh("autostart", d.name)
	m.run("systemctl", "enable", "target.service", "libvirtd.service", "multipathd.service", "iscsid.socket", "diskhook-volumes.target")
}

// volumesAfterPowerCut finds the domain running, and what was attached for
// nobody as a row of an earlier boot.
func volumesAfterPowerCut(m machine) {
	m.scenario("autostart", func(m machine) {
		d := hosted()
		m.within("autostart", func() bool {
			r := m.try("", "virsh", "-q", "-c", "qemu:///system", "domstate", d.name)
			return r.code == 0 && strings.TrimSpace(r.output) == "running"
		})
		m.reads(volumeLink("hosted"), pattern("hosted"), 0)
		m.reads(volumeLink("space2"), pattern("space2"), 0)
		m.startedAfter("libvirtd.service", "target.service", "multipathd.service", "network-online.target")
	})
	m.scenario("earlier boot", func(m machine) {
		m.refused(m.volume("reconcile"), 10, "locked", "twice", "it was attached in an earlier boot")
		m.attached("twice")
		m.refused(m.volume("detach", "twice"), 0)
		m.refused(m.volume("reconcile", "--yes"), 0, "locked")
		m.reads(volumeLink("hosted"), pattern("hosted"), 0)
		m.virsh("destroy", hosted().name)
		m.within("release", func() bool { return !exists(volumeLink("hosted")) && !exists(volumeLink("space2")) })
		m.noneLeft()
		m.attached("locked")
		m.detached("locked")
	})
	m.scenario("secrets", secrets)
}

// startedAfter wants a unit to have been started after the others were up.
func (m machine) startedAfter(unit string, others ...string) {
	m.Helper()
	at := func(name, property string) time.Duration {
		text := m.run("systemctl", "show", "--value", "-p", property, name)
		usec, err := time.ParseDuration(text + "us")
		if err != nil || usec == 0 {
			m.Fatalf("%s of %s: %q", property, name, text)
		}
		return usec
	}
	began := at(unit, "ExecMainStartTimestampMonotonic")
	for _, other := range others {
		if up := at(other, "ActiveEnterTimestampMonotonic"); up > began {
			m.Errorf("%s began at %v, %s was up at %v", unit, began, other, up)
		}
	}
}
