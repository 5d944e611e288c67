// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import "strings"

// serverStops: the server of the shared storage goes in the middle of copies.
// Whoever does not need it is answered, and so is who does.
func serverStops(m machine) {
	goesOn := m.bind(named("goes-on", disk{"vda", "lvmthin", "slow"}))
	given := m.bind(named("given-up", disk{"vda", "lvm", "slow"}))
	late := m.bind(named("late", disk{"vda", "lvm", "one"}))
	m.configured(map[string]string{"local.rate": `"512KiB"`, "local.deadline": `"15s"`})
	first, second := m.starting(goesOn), m.starting(given)
	made := m.lv(goesOn.copyName("vda"), "lv_uuid")[0]
	m.run("rpc.nfsd", "0")
	for _, r := range []result{<-first, <-second} {
		m.refused(r, 1, "disk vda", "the copy goes on", "diskhook local status")
		m.answered("a start with a deadline of 15 s", r)
	}
	at := copied(goesOn.id, "vda")
	m.configure(map[string]string{"local.deadline": `"5s"`})
	for _, d := range []domain{goesOn, given} {
		m.answered("a start that waits 5 s", m.vetoed(d, "disk vda", "the copy goes on"))
	}
	if now := copied(goesOn.id, "vda"); now != at {
		m.Errorf("the copy went from %d to %d without its source", at, now)
	}
	m.unchanged(func() {
		m.answered("a start with no copy yet", m.vetoed(late, "disk vda", late.disks[0].source()))
	})
	m.notReady(late, "vda")
	m.answered("a start of another domain", m.started(steady()))
	m.reads(steady().link("vda"), 0x5d, 3<<20)
	m.stopped(steady())

	list := m.try("", "diskhook", "local", "list")
	m.answered("local list", list)
	status := m.try("", "diskhook", "local", "status", goesOn.id)
	m.answered("local status of a copy", status)
	for _, r := range []result{list, status} {
		if r.code != 0 || !strings.Contains(r.output, "updating") {
			m.Errorf("exit code %d: %s", r.code, r.output)
		}
	}
	// This one has a ready copy, so its source is looked at for a remark.
	status = m.try("", "diskhook", "local", "status", steady().id)
	m.answered("local status of a ready copy", status)
	if status.code != 0 || !strings.Contains(status.output, "ready") {
		m.Errorf("exit code %d: %s", status.code, status.output)
	}
	doctor := m.try("", "diskhook", "doctor")
	m.answered("doctor", doctor)
	if !strings.Contains(doctor.output, "local copies, all well") {
		m.Errorf("doctor says: %s", doctor.output)
	}
	cancel := m.try("", "diskhook", "local", "cancel", given.id, "vda")
	m.answered("local cancel", cancel)
	m.refused(cancel, 0)
	m.notReady(given, "vda")

	m.configure(nil)
	m.run("rpc.nfsd", "8")
	m.started(goesOn)
	if now := m.lv(goesOn.copyName("vda"), "lv_uuid")[0]; now != made {
		m.Errorf("the copy did not wait for its source: volume %s, was %s", now, made)
	}
	m.same(goesOn)
	m.stopped(goesOn)
	m.converges(given)
	m.converges(late)
	m.forget(goesOn, given, late)
}
