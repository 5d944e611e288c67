// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"strings"
	"time"
)

// cuts are the domains whose copies are in different states when the power
// goes, and what must be found after it.
var cuts = []struct {
	domain
	at                string // failpoint; "" is the middle of the copy
	updating, receipt bool
}{
	{named("cut-lvm", disk{"vda", "lvm", "slow"}), "", true, false},
	{named("cut-thin", disk{"vda", "lvmthin", "slow"}), "", true, false},
	{named("cut-receipt", disk{"vda", "lvm", "one"}), "fill.receipt", true, true},
	{named("cut-ready", disk{"vda", "lvmthin", "two"}), "fill.finished", false, true},
}

// cutInEachState cuts the power while one copy is in each of the states.
func cutInEachState(m machine) {
	const unit = "/run/systemd/system/diskhook-copy-.service.d/failpoint.conf"
	m.run("cp", "diskhook.failpoints", "/usr/bin/diskhook")
	m.configure(map[string]string{"local.deadline": `"1s"`})
	for _, c := range cuts {
		if c.at == "" {
			continue
		}
		m.write(unit, "[Service]\nEnvironment=DISKHOOK_FAILPOINT="+c.at+"=sleep:1h DISKHOOK_FAILPOINT_LOG=/run/"+c.name+"\n", 0o644)
		m.run("systemctl", "daemon-reload")
		m.vetoed(m.bind(c.domain), "the copy goes on")
		m.within(time.Minute, c.name+" reaches "+c.at, func() bool {
			log, _ := os.ReadFile("/run/" + c.name)
			return strings.Contains(string(log), c.at+"\n")
		})
	}
	m.must(os.Remove(unit))
	m.run("systemctl", "daemon-reload")
	m.configure(map[string]string{"local.rate": `"256KiB"`, "local.deadline": `"1s"`}) // nobody waits for their end
	for _, c := range cuts {
		if c.at == "" {
			m.vetoed(m.bind(c.domain), "the copy goes on")
		}
	}
	for _, c := range cuts {
		if c.at == "" {
			m.within(time.Minute, c.name+" is being copied", func() bool { return copied(c.id, "vda") > 0 })
		}
	}
	m.cutPower()
}

// afterPowerCut finds each copy in the state in which the power went, and
// starts each domain as if nothing had been.
func afterPowerCut(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	for _, c := range cuts {
		m.scenario(c.name, func(m machine) {
			lv := m.lv(c.copyName("vda"), "lv_tags", "lv_uuid")
			if updating := strings.Contains(lv[0], "UPDATING"); updating != c.updating {
				m.Errorf("tags %s", lv[0])
			}
			if r := m.receipt(c.id, "vda"); (r != nil) != c.receipt || r != nil && (r.Used || r.Copy != lv[1]) {
				m.Errorf("receipt %+v", r)
			}
			m.started(c.domain)
			m.same(c.domain)
			if again := m.lv(c.copyName("vda"), "lv_uuid")[0]; (again != lv[1]) != c.updating {
				m.Errorf("volume %s, was %s", again, lv[1])
			}
			m.stopped(c.domain)
		})
	}
	m.scenario("a copy that was ready", func(m machine) {
		d := web()
		m.unchanged(func() { m.started(d) })
		m.reads(d.link("vda"), 0x78, 8<<20)
		m.stopped(d)
	})
	m.scenario("libvirtd", underLibvirtd)
}
