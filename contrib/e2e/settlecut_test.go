// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// settleCut is a disk that is held at a point of its settling, in the middle of
// it where there is none, when the power goes. A step is a disk, so that few
// guests are needed.
type settleCut struct {
	target, at string
	args       []string
	is         func(localdisk.Receipt) bool // what is known of it then
	writes     bool                         // the guest does, once it is there
}

func settling(r localdisk.Receipt) bool { return r.Unsettled() && r.Pivot == nil }
func making(r localdisk.Receipt) bool   { return r.Unsettled() && r.Pivot != nil }
func marked(r localdisk.Receipt) bool   { return r.Overlay == nil && r.Pivot != nil }

// crawling is a rate at which a copy never ends.
const crawling = "1K"

var (
	// Overlays on their way: they are the disk when the power is back.
	onOverlays = instant("cut-overlays", "lvm", "lvmthin", "lvm")
	toOverlays = []settleCut{
		{"vda", "", []string{"--rate", crawling}, settling, true},
		{"vdb", "pivot.ready", []string{"--raw"}, making, true},
		{"vdc", "pivot.suspended", []string{"--raw"}, making, false},
	}
	// Past the pivot: the raw volume is the disk, or becomes it. The first one's
	// guest runs again, the last one has the lock on the definition.
	onRaw = instant("cut-raw", "lvm", "lvmthin", "lvm", "lvmthin", "lvm")
	toRaw = []settleCut{
		{"vde", "pivot.resumed", []string{"--raw"}, marked, false},
		{"vdd", "pivot.marked", []string{"--raw"}, marked, false},
		{"vdc", "pivot.flushed", []string{"--raw"}, making, false},
		{"vdb", "pivot.pivoted", []string{"--raw"}, making, false},
		{"vda", "pivot.redefined", []string{"--raw"}, marked, false},
	}
)

// settlingInEachState leaves disks in each state between an overlay and a raw
// volume, with the writes of a guest on them.
func settlingInEachState(m machine) {
	m.run("systemctl", "start", "libvirtd")
	for _, running := range []struct {
		domain
		cuts []settleCut
	}{{onOverlays, toOverlays}, {onRaw, toRaw}} {
		d := m.defined(running.domain)
		m.virsh("start", d.name)
		for _, disk := range d.disks {
			m.guestWrites(d, disk.target, 0x62, 3<<20)
		}
		for _, c := range running.cuts {
			m.settles(d, c.target, c.at, c.args...)
			if c.writes {
				m.guestWrites(d, c.target, 0x63, 5<<20)
			}
		}
	}
}

// isHeld wants disks to be where their settling was when the power went.
func (m machine) isHeld(d domain, cuts []settleCut) {
	m.Helper()
	for _, c := range cuts {
		if r := m.receipt(d.id, c.target); r == nil || !r.Used || !c.is(*r) {
			m.Errorf("%s: disk %s, cut at %q: receipt %+v", d.name, c.target, c.at, r)
		}
	}
}

// afterSettlingWasCut: what is on overlays starts on them at once, and the next
// settling goes on. What is past the pivot is left for the timer.
func afterSettlingWasCut(m machine) {
	m.run("systemctl", "start", "libvirtd")
	m.isHeld(onOverlays, toOverlays)
	m.isHeld(onRaw, toRaw)
	m.finds(onOverlays, imagecheck.QCOW2, imagecheck.QCOW2, imagecheck.QCOW2)
	m.run("diskhook", "local", "settle", onOverlays.name)
	m.finds(onOverlays, imagecheck.QCOW2, imagecheck.Raw, imagecheck.Raw)

	m.asDefined(onRaw)
	m.unchanged(func() {
		m.vetoed(onRaw, "disk vd", "diskhook local settle --raw cut-raw vd")
	})
	m.write("/etc/systemd/system/diskhook-settle.timer.d/soon.conf", "[Timer]\nOnBootSec=\nOnBootSec=1s\nOnUnitInactiveSec=10s\nRandomizedDelaySec=0\n", 0o644)
	m.run("systemctl", "enable", "diskhook-settle.timer")
}

// afterTheTimer: nobody has done anything, and nothing is mounted. The timer has
// brought every disk to where a start finds it.
func afterTheTimer(m machine) {
	converged := func() bool {
		for _, disk := range onRaw.disks {
			if r := m.receipt(onRaw.id, disk.target); r == nil || r.Pivot != nil {
				return false
			}
		}
		return true
	}
	m.within("the timer settles", converged)
	var raw []string
	for _, disk := range onRaw.disks {
		m.isRaw(onRaw, disk.target)
		raw = append(raw, imagecheck.Raw)
	}
	m.finds(onRaw, raw...)
	m.virsh("start", onRaw.name)
	m.virsh("destroy", onRaw.name)
}
