// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
)

// cuts are the domains whose copies are in different states when the power
// goes, each held there by a failpoint, and what must be found after it. Those
// that go on copying meanwhile come last, with a rate that leaves them in the
// middle.
var cuts = []struct {
	domain
	at                string // failpoint
	updating, receipt bool
	again             bool // nothing is known of what was copied, so it is made again
}{
	{named("cut-created", disk{"vda", "lvm", "one"}), "fill.created", true, false, true},
	{named("cut-unflushed", disk{"vda", "lvm", "two"}), "transfer.converted", true, false, false},
	{named("cut-receipt", disk{"vda", "lvm", "one"}), "fill.receipt", true, true, false},
	{named("cut-ready", disk{"vda", "lvmthin", "two"}), "fill.finished", false, true, false},
	{named("cut-lvm", disk{"vda", "lvm", "slow"}), "transfer.cursor", true, false, false},
	{named("cut-thin", disk{"vda", "lvmthin", "slow"}), "transfer.cursor", true, false, false},
}

// holdInEachState leaves one copy in each of the states.
func holdInEachState(m machine) {
	m.run("cp", "diskhook.failpoints", "/usr/bin/diskhook")
	for _, c := range cuts {
		if c.at == "transfer.cursor" {
			m.configure(map[string]string{"local.rate": `"192KiB"`}) // a cursor comes before the end
		}
		m.holdCopy(c.domain, c.at)
		// It waits until the power goes.
		m.must(m.hookCommand(m.bind(c.domain), "prepare", "begin").Start())
		m.within(c.name+" is begun", func() bool { return passed(c.domain) != "" })
	}
	for _, c := range cuts {
		m.within(c.name+" reaches "+c.at, func() bool { return strings.Contains(passed(c.domain), c.at+"\n") })
	}
}

// failpoints is what has copies stop on their way.
const failpoints = "/run/systemd/system/diskhook-copy-.service.d/failpoint.conf"

// holdCopy has copies that begin from now on stop at a failpoint; diskhook must
// be the one that has them. What a domain's copy has passed is in a file.
func (m machine) holdCopy(d domain, at string) {
	m.Helper()
	m.write(failpoints, "[Service]\nEnvironment=DISKHOOK_FAILPOINT="+at+"=sleep:1h DISKHOOK_FAILPOINT_LOG=/run/"+d.name+"\n", 0o644)
	m.run("systemctl", "daemon-reload")
}

func passed(d domain) string {
	log, _ := os.ReadFile("/run/" + d.name)
	return string(log)
}

// cursor is how many bytes of a copy on a logical volume are known to be there; -1 is
// that nothing is known.
func (m machine) cursor(d domain, target string) int64 {
	m.Helper()
	return m.cursorOf(m.lv(d.copyName(target), "lv_uuid")[0])
}

// cursorOf is that of a copy with this UUID.
func (m machine) cursorOf(uuid string) int64 {
	m.Helper()
	text, err := os.ReadFile("/var/lib/diskhook/cursors/" + uuid)
	if os.IsNotExist(err) {
		return -1
	}
	m.must(err)
	var cursor struct{ Done int64 }
	m.must(json.Unmarshal(text, &cursor))
	return cursor.Done
}

// writtenFrom wants no more to have been written to a started domain's volume,
// since it was activated, than what lies from done to its end.
func (m machine) writtenFrom(d domain, done int64) {
	m.Helper()
	volume := m.lv(d.copyName("vda"), "lv_size", "lv_kernel_minor")
	stat, err := os.ReadFile("/sys/block/dm-" + volume[1] + "/stat")
	m.must(err)
	size, err := strconv.ParseInt(volume[0], 10, 64)
	m.must(err)
	sectors, err := strconv.ParseInt(strings.Fields(string(stat))[6], 10, 64)
	m.must(err)
	m.Logf("%s: %d of %d bytes were written, %d were there", d.name, sectors*512, size, done)
	if sectors*512 > size-done {
		m.Errorf("%s: %d bytes were written to the %d after %d", d.name, sectors*512, size-done, done)
	}
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
			done := m.cursor(c.domain, "vda")
			if c.at == "transfer.cursor" && (done <= 0 || done >= oddSize) {
				m.Errorf("%d bytes are known to be copied", done)
			}
			m.started(c.domain)
			m.same(c.domain)
			if now := m.lv(c.copyName("vda"), "lv_uuid")[0]; (now != lv[1]) != c.again {
				m.Errorf("volume %s, was %s", now, lv[1])
			}
			if !c.again {
				m.writtenFrom(c.domain, done)
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
