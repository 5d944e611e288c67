// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import "testing"

// TestTemplateHost is a host of many domains with one base.
func TestTemplateHost(t *testing.T) {
	host{
		install: "install",
		images:  []chain{{name: "golden", seed: 10, data: 8}, {name: "two", seed: 20, data: 8}, {name: "slow", seed: 50, data: slow}},
		boots: []boot{
			{"templates", templates, powerCut},
			{"after the power cut", templatesAfterPowerCut, inOrder},
		},
	}.run(t)
}

func templates(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.scenario("starts at once", startsAtOnce)
	m.filled()
	m.scenario("pool above its watermark", aboveWatermark)
	m.scenario("room is made", roomIsMade)
	m.scenario("cut", cutInTemplate)
	m.cutPower()
}
