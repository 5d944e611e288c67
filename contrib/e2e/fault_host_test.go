// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestFaultyHost is a host on which everything around a copy breaks: the
// server of the shared storage, disks, free space, sources, the clock. Each
// scenario wants one clear line, nothing ready that is not right, and that the
// same start succeeds once the fault is gone.
func TestFaultyHost(t *testing.T) {
	host{
		install: "install",
		images:  []chain{{name: "one", seed: 10}, {name: "slow", seed: 50, data: slow}},
		boots:   []boot{{"faults", faults, inOrder}},
	}.run(t)
}

// steady is a domain whose guest has written to its ready copy. No fault of
// another's may reach it.
func steady() domain { return named("steady", disk{"vda", "lvm", "one"}) }

func faults(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.scenario("steady", func(m machine) {
		d := m.bind(steady())
		m.started(d)
		m.same(d)
		m.writes(d.link("vda"), 0x5d, 3<<20)
		m.stopped(d)
	})
	before := m.lv(steady().copyName("vda"), "lv_uuid", "lv_tags", "lv_size")
	m.scenario("server stops", serverStops)
	m.scenario("target fails", targetFails)
	m.scenario("source fails", sourceFails)
	m.scenario("source replaced", sourceReplaced)
	m.scenario("clocks apart", clocksApart)
	m.scenario("volume group full", groupFull)
	m.scenario("thin pool full", poolFull)
	m.scenario("state directory full", stateFull)
	m.scenario("run directory full", runFull)
	m.scenario("steady in the end", func(m machine) {
		d := steady()
		if after := m.lv(d.copyName("vda"), "lv_uuid", "lv_tags", "lv_size"); strings.Join(after, "|") != strings.Join(before, "|") {
			m.Errorf("its volume is %v, was %v", after, before)
		}
		m.started(d)
		m.reads(d.link("vda"), 0x5d, 3<<20)
		m.stopped(d)
	})
}

// prestage makes a domain's copies by the command line.
func (m machine) prestage(d domain) result {
	m.Helper()
	return m.try("", "diskhook", "local", "prestage", "--xml", d.file(), d.id)
}

// forget ends a scenario's use of a domain.
func (m machine) forget(domains ...domain) {
	m.Helper()
	for _, d := range domains {
		for _, disk := range d.disks {
			m.run("diskhook", "local", "remove", "--discard-guest-data", d.id, disk.target)
		}
	}
}

// converges wants the same start, that a fault kept from succeeding, to
// succeed now.
func (m machine) converges(d domain) {
	m.Helper()
	m.started(d)
	m.same(d)
	m.stopped(d)
}

// notReady wants nothing of a disk that anybody could take for its copy: at
// most a volume marked UPDATING, and no receipt nor path.
func (m machine) notReady(d domain, target string) {
	m.Helper()
	tags := m.run("lvs", "--noheadings", "-o", "lv_tags", "-S", "lv_name="+d.copyName(target))
	if tags != "" && !strings.Contains(tags, "UPDATING") {
		m.Errorf("%s: the copy of disk %s has tags %s", d.name, target, tags)
	}
	if r := m.receipt(d.id, target); r != nil {
		m.Errorf("%s: disk %s: receipt %+v", d.name, target, r)
	}
	if exists(d.link(target)) {
		m.Errorf("%s: disk %s has its path", d.name, target)
	}
}

// starting starts a domain beside what goes on, and waits until its copy is
// being made. The result comes when the start has ended.
func (m machine) starting(d domain) <-chan result {
	m.Helper()
	hook := m.hookCommand(d, "prepare", "begin")
	ended := make(chan result, 1)
	go func() {
		from := time.Now()
		out, _ := hook.CombinedOutput()
		ended <- result{hook.ProcessState.ExitCode(), string(out), time.Since(from)}
	}()
	m.within(d.name+" is being copied", func() bool { return copied(d.id, d.disks[0].target) > 0 })
	return ended
}

// answered wants a result that did not hang.
func (m machine) answered(what string, r result) {
	m.Helper()
	m.Logf("%s took %v", what, r.took)
	if r.took > hanging {
		m.Errorf("%s took %v: exit code %d: %s", what, r.took, r.code, r.output)
	}
}
