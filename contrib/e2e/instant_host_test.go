// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import "testing"

// TestInstantHost is a host whose domains start on overlays, before anything is
// copied. The power goes while their disks are settled.
func TestInstantHost(t *testing.T) {
	host{
		install: "install",
		images:  smallImages(),
		boots: []boot{
			{"instant", instantly, powerCut},
			{"after the power cut", afterPowerCutInstant, inOrder},
			{"after the reboot", afterTheTimer, inOrder},
		},
	}.run(t)
}

func instantly(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.scenario("instant start", instantStart)
	if m.Failed() {
		return // what is left prepares the power cut, which does not come
	}
	settlingInEachState(m)
	m.cutPower()
}

func afterPowerCutInstant(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	afterSettlingWasCut(m)
	m.run("systemctl", "enable", "libvirtd")
}
