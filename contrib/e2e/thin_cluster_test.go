// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestThinCluster has two hosts on one LUN be a thin cluster, run as an operator
// does, on a volume group that lvmlockd locks with sanlock's leases there. alpha is the
// master, then beta, which loses its power; see thin_crash_test.go for more of that, on
// a plain group.
func TestThinCluster(t *testing.T) {
	lab{
		hosts:   map[string][]labBoot{"alpha": {{"alpha", clusterAlpha, powerCut}}, "beta": {{"beta", clusterBeta, powerCut}}},
		notices: []string{"cluster made", "filled", "cloned", "alpha has diverged", "beta has diverged", "beta dies"},
		lun:     1 << 30, // a quarter has the leases
	}.run(t)
}

// patient has a verb wait longer than it would for a master that is emulated, beside
// this host or on it.
func patient(args ...string) []string {
	if slices.Contains([]string{"create", "attach", "detach", "snapshot", "clone", "delete", "import"}, args[0]) {
		args = slices.Insert(args, 1, "--deadline", patience.String())
	}
	return append([]string{"thin"}, args...)
}

// thin runs a verb of diskhook.
func (m labMachine) thin(args ...string) string {
	m.Helper()
	began := time.Now()
	defer func() {
		m.Helper()
		m.Logf("%s, %s: thin %s took %v", m.name, m.uptime(), args[0], time.Since(began).Round(100*time.Millisecond))
	}()
	return m.run("diskhook", patient(args...)...)
}

func device(volume string) string { return "/run/diskhook/thin/lab/" + volume }

const labDefinition = "/etc/diskhook/clusters.d/lab.json"

// labStep is how much fill writes at a time, in bytes.
const labStep = 64 << 10

// fill is a guest: it writes blocks of labStep that say where they are and who wrote
// them, and syncs each.
func (m labMachine) fill(volume string, seed byte, from, to int64) {
	m.Helper()
	f, err := os.OpenFile(device(volume), os.O_RDWR, 0)
	m.must(err)
	defer f.Close()
	for at := from; at < to; at += labStep {
		_, err := f.WriteAt(labBlock(seed, at), at)
		m.must(err)
		m.must(f.Sync())
	}
}

// holds wants what fill wrote.
func (m labMachine) holds(volume string, seed byte, from, to int64) {
	m.Helper()
	f, err := os.Open(device(volume))
	m.must(err)
	defer f.Close()
	b := make([]byte, labStep)
	for at := from; at < to; at += labStep {
		_, err := f.ReadAt(b, at)
		m.must(err)
		if string(b) != string(labBlock(seed, at)) {
			m.Fatalf("volume %s at %d: %q…, want %q…", volume, at, b[:24], labBlock(seed, at)[:24])
		}
	}
}

func labBlock(seed byte, at int64) []byte {
	line := fmt.Sprintf("%c at %012d, as written\n", seed, at)
	return []byte(strings.Repeat(line, labStep/len(line)+1)[:labStep])
}

const mib = 1 << 20

// makeCluster has a cluster on the LUN for both, with this host as its master. A host
// has between a sixteenth and an eighth of its size free.
func (m labMachine) makeCluster(size string) {
	m.Helper()
	m.run("vgcreate", "lun", "/dev/vdb")
	m.initCluster(size)
}

// initCluster does so on the volume group that is there.
func (m labMachine) initCluster(size string) {
	m.Helper()
	m.thin("init-cluster", "--vg", "lun", "--size", size, "lab")
	m.thin("on-master")
	m.thin("init-host")
	m.thin("init-host", "beta")
	definition, err := os.ReadFile(labDefinition)
	m.must(err)
	m.tell("cluster made", string(definition))
	m.thin("on-join")
}

// joinCluster joins what the other host has made.
func (m labMachine) joinCluster() {
	m.Helper()
	m.joinsCluster(m.await("cluster made"))
}

// joinsCluster joins what this says.
func (m labMachine) joinsCluster(definition string) {
	m.Helper()
	m.write(labDefinition, definition, 0o600)
	m.must(os.Chmod(filepath.Dir(labDefinition), 0o700))
	m.run("sync") // it is needed after a power cut
	m.thin("on-join")
}

func clusterAlpha(m labMachine) {
	m.joins(1)
	m.run("vgcreate", "-q", "--shared", "lun", "/dev/vdb")
	m.initCluster("256M")
	// What beta wrote is here after its detach, and beta has no device of it.
	m.await("filled")
	m.thin("attach", "one")
	m.holds("one", 'b', 0, 4*mib)
	m.thin("detach", "one")
	m.thin("clone", "one", "two")
	m.thin("attach", "one")
	m.tell("cloned", "")
	// Both write to what they share, at the same time.
	m.fill("one", 'a', 1*mib, 3*mib)
	m.tell("alpha has diverged", "")
	m.await("beta has diverged")
	m.holdsOne()
	m.await("beta dies")
	m.await(ended("beta"))
	m.survives()
	m.holdsOne()
	m.thin("detach", "one")
	m.thin("on-leave")
	m.thin("check", "--offline")
	m.cutPower()
}

// survives is the master after the other host, which was it and had volume two when its
// power went, and forgets that host.
func (m labMachine) survives() {
	m.Helper()
	s := m.status()
	m.thin("on-master")
	m.thin("on-fenced", "--evidence", "operator:it is off", "beta")
	m.thinCheck(s, "lun", "beta")
	m.thin("recover", "beta")
	m.thin("check")
	m.thin("attach", "two")
	m.holdsTwo()
	m.thin("detach", "two")
	m.thin("delete", "two")
	// To sanlock it is alive until its lease has ended, with its locks.
	m.within("beta is dead to sanlock, too", func() bool {
		r := m.try("", "diskhook", "thin", "remove-host", "beta")
		if r.code != 0 {
			m.refused(r, 4, "LV locked by other host")
		}
		return r.code == 0
	})
}

func clusterBeta(m labMachine) {
	m.joins(2)
	definition := m.await("cluster made")
	// LVM does not wait for udev to make the node of the volume with the leases.
	m.within("the group's locks are there", func() bool { return m.try("", "vgchange", "-q", "--lock-start", "lun").code == 0 })
	m.joinsCluster(definition)
	m.thin("create", "one", "64M")
	m.thin("attach", "one")
	m.fill("one", 'b', 0, 4*mib)
	m.thin("detach", "one")
	if exists(device("one")) {
		m.Error("the device of a volume that was detached is there")
	}
	m.tell("filled", "")
	m.await("cloned")
	m.refused(m.try("", "diskhook", "thin", "attach", "one"), 4, "volume one", "host alpha")
	m.thin("attach", "two")
	m.fill("two", 'c', 2*mib, 4*mib)
	m.tell("beta has diverged", "")
	m.await("alpha has diverged")
	m.holdsTwo()
	m.thin("on-master") // LVM's metadata are written by any host
	m.thin("create", "three", "16M")
	m.thin("attach", "three")
	m.fill("three", 'e', 0, 1*mib)
	m.thin("detach", "three")
	m.tell("beta dies", "")
	m.cutPower()
}

// holdsOne wants what the two wrote to volume one.
func (m labMachine) holdsOne() {
	m.Helper()
	m.holds("one", 'b', 0, 1*mib)
	m.holds("one", 'a', 1*mib, 3*mib)
	m.holds("one", 'b', 3*mib, 4*mib)
}

func (m labMachine) holdsTwo() {
	m.Helper()
	m.holds("two", 'b', 0, 2*mib)
	m.holds("two", 'c', 2*mib, 4*mib)
}
