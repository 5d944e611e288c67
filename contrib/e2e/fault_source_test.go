// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// sourceReplaced: what was read before and after another put something else
// there fits no moment of the source, so it is not used.
func sourceReplaced(m machine) {
	for name, replace := range map[string]string{
		"renamed over":   `mv "$0/other.qcow2" "$0/base.qcow2"`,
		"written within": `dd if=/dev/urandom of="$0/base.qcow2" bs=64k seek=40 count=1 conv=notrunc,fsync status=none`,
	} {
		m.scenario(name, func(m machine) {
			at := filepath.Join(shared, "swap")
			m.run("cp", "-a", filepath.Join(shared, "slow"), at)
			m.run("sh", "-euc", `cd "$0"; qemu-img convert -f qcow2 -O qcow2 base.qcow2 other.qcow2; qemu-io -f qcow2 -c "write -P 99 5M 64k" other.qcow2`, at)
			m.finally("rm", "-r", at)
			d := m.bind(named("swap", disk{"vda", "lvm", "swap"}))
			m.configured(map[string]string{"local.rate": `"2MiB"`})
			ended := m.starting(d)
			m.run("sh", "-euc", replace, at)
			m.refused(<-ended, 1, "domain swap: disk vda", at, "while it was copied", "start again")
			m.notReady(d, "vda")
			m.configure(nil)
			m.converges(d)
			m.forget(d)
		})
	}
}

// clocksApart: another host's clock, or this one's, says nothing about what a
// copy is of.
func clocksApart(m machine) {
	const day = 24 * time.Hour
	at := filepath.Join(shared, "clock")
	m.run("cp", "-a", filepath.Join(shared, "one"), at)
	m.run("touch", "-d", "2 days", filepath.Join(at, "base.qcow2"))
	m.run("touch", "-d", "1971-05-17", filepath.Join(at, "top.qcow2"))
	used := m.bind(named("used", disk{"vda", "lvm", "clock"}))
	m.converges(used)
	fresh := m.bind(named("fresh", disk{"vda", "lvm", "clock"}))
	m.refused(m.prestage(fresh), 0)
	m.unchanged(func() { m.refused(m.prestage(fresh), 0, "nothing to do") })

	m.clock(-day)
	m.unchanged(func() { m.refused(m.prestage(fresh), 0, "nothing to do") })
	m.unchanged(func() { m.converges(used) })
	m.clock(5 * day)
	m.unchanged(func() { m.converges(used) })
	m.unchanged(func() { m.converges(fresh) })
	// This copy is made at one time, and used days before.
	m.refused(m.prestage(m.bind(named("ahead", disk{"vda", "lvmthin", "clock"}))), 0)
	m.clock(-5 * day)
	ahead := named("ahead", disk{"vda", "lvmthin", "clock"})
	m.unchanged(func() { m.converges(ahead) })

	// What was copied before is still known when it was copied in the future.
	halved := m.bind(named("halved", disk{"vda", "lvm", "slow"}))
	m.configured(map[string]string{"local.rate": `"768KiB"`, "local.deadline": `"10m"`}) // a cursor comes before the end
	m.run("cp", "--remove-destination", "diskhook.failpoints", "/usr/bin/diskhook")
	m.holdCopy(halved, "transfer.cursor")
	ended := m.starting(halved)
	m.within("some of the copy is known to be there", func() bool { return strings.Contains(passed(halved), "transfer.cursor\n") })
	m.run("systemctl", "kill", "--signal=KILL", "diskhook-copy-*")
	m.refused(<-ended, 1, "disk vda", "its copy process died")
	m.notReady(halved, "vda")
	m.run("rm", failpoints)
	m.run("systemctl", "daemon-reload")
	m.run("cp", "--remove-destination", "root/usr/bin/diskhook", "/usr/bin/diskhook")
	m.configure(nil)
	m.clock(-day)
	done := m.cursor(halved, "vda")
	if done <= 0 || done >= oddSize {
		m.Errorf("%d bytes of the copy are known to be there", done)
	}
	m.unchangedBut(halved.copyName("vda"), func() { m.started(halved) })
	m.same(halved)
	m.Logf("%d bytes were there already", done)
	m.stopped(halved)
	m.clock(day)

	// A write that seems to be older than the copy is one nevertheless: no guest
	// has used this copy, so prestage makes it again.
	stale := m.bind(named("stale", disk{"vda", "lvm", "clock"}))
	m.refused(m.prestage(stale), 0)
	made := m.lv(stale.copyName("vda"), "lv_uuid")[0]
	m.clock(-day)
	defer m.clock(2 * day)
	m.run("qemu-io", "-f", "qcow2", "-c", "write -P 111 2M 64k", filepath.Join(at, "top.qcow2"))
	m.refused(m.prestage(stale), 0)
	m.converges(stale)
	if now := m.lv(stale.copyName("vda"), "lv_uuid")[0]; now == made {
		m.Error("a copy of what the source was has been used")
	}
	m.forget(used, fresh, ahead, halved, stale)
}

// clock moves the host's clock.
func (m machine) clock(by time.Duration) {
	m.Helper()
	m.run("date", "-s", fmt.Sprintf("@%d", time.Now().Add(by).Unix()))
}
