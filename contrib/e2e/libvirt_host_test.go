// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import "testing"

// slow has enough data for a copy with a limited rate to be caught in the
// middle.
const slow = 20

// TestLibvirtHost is a plain host of libvirt. Most starts call the hook as
// libvirt does, without a virtual machine: that is emulated twice here.
func TestLibvirtHost(t *testing.T) {
	host{
		install: "install",
		images: []chain{
			{name: "one", seed: 10}, {name: "two", seed: 20}, {name: "three", seed: 30}, {name: "four", seed: 40},
			{name: "slow", seed: 50, data: slow}, {name: "huge", seed: 60, size: 4 << 30},
		},
		boots: []boot{
			{"copies", copies, powerCut},
			{"after the power cut", afterPowerCut, inOrder},
			{"after the reboot", afterReboot, inOrder},
		},
	}.run(t)
}

func copies(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.scenario("first start", firstStart)
	m.scenario("four ready disks", fourReady)
	m.scenario("two starts", twoStarts)
	m.scenario("hook killed", hookKilled)
	m.scenario("no room", noRoom)
	m.scenario("nothing to copy from or to", nothingThere)
	m.scenario("receipt without its copy", withoutCopy)
	m.scenario("open volume", openVolume)
	m.scenario("shared storage hangs", hangs)
	m.scenario("resize", resize)
	m.scenario("giving up", givingUp)
	if m.Failed() {
		return // what is left prepares the power cut, which does not come
	}
	holdInEachState(m)
	m.cutPower()
}
