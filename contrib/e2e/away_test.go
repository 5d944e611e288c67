// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"sync"
)

// away takes the shared storage away while do runs, as a cable does that is
// pulled: the mount is there, and who touches it hangs.
func (m machine) away(do func()) {
	m.Helper()
	m.run("ip", "link", "set", "lo", "down")
	defer m.run("ip", "link", "set", "lo", "up")
	do()
}

// hangs: with a server that does not answer, ready copies start, others are
// refused in time, and a copy waits for it.
func hangs(m machine) {
	ready := web()
	absent := []domain{
		m.bind(named("absent", disk{"vda", "lvm", "two"})),
		m.bind(named("absent-raw", disk{"vda", "lvm", "plain.raw"})), // no header is read to find its chain
	}
	m.run("truncate", "-s", "8M", shared+"/plain.raw")
	m.configured(map[string]string{"local.deadline": `"5s"`})
	m.away(func() {
		m.started(ready)
		m.reads(ready.link("vda"), 0x77, 3<<20)
		m.stopped(ready)
		m.unchanged(func() {
			starts := make([]result, len(absent))
			var all sync.WaitGroup
			for i, d := range absent {
				all.Go(func() { starts[i] = m.start(d) })
			}
			all.Wait()
			for i, d := range absent {
				if m.isVeto(d, starts[i], "disk vda", d.disks[0].source()); starts[i].took > hanging {
					m.Errorf("a start of %s took %v", d.name, starts[i].took)
				}
			}
		})
		if r := m.try("", "diskhook", "local", "list"); r.code != 0 || r.took > hanging {
			m.Errorf("local list took %v: %d %s", r.took, r.code, r.output)
		}
	})

	d := m.bind(named("waiting", disk{"vda", "lvm", "slow"}))
	m.configure(map[string]string{"local.rate": rate, "local.deadline": `"1s"`})
	m.vetoed(d, "the copy goes on")
	m.within("the copy begins", func() bool { return copied(d.id, "vda") > 0 })
	m.away(func() {
		m.configure(map[string]string{"local.deadline": `"5s"`})
		if r := m.vetoed(d, "disk vda", "the copy goes on"); r.took > hanging {
			m.Errorf("a start that waits 5 s took %v", r.took)
		}
		m.started(ready)
		m.stopped(ready)
	})
	m.configure(nil)
	m.unchangedBut(d.copyName("vda"), func() { m.started(d) })
	m.same(d)
	m.stopped(d)
	m.run("diskhook", "local", "remove", "--discard-guest-data", d.id, "vda")
}
