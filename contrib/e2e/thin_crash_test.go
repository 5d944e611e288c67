// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestThinCrash has each of the two hosts of TestThinCluster lose its power twice, in
// the middle of a verb.
func TestThinCrash(t *testing.T) {
	lab{
		hosts: map[string][]labBoot{
			"alpha": {{"alpha", crashAlpha, powerCut}, {"alpha again", alphaAgain, powerCut}},
			"beta":  {{"beta", crashBeta, powerCut}, {"beta again", betaAgain, powerCut}, {"beta at last", betaAtLast, powerCut}},
		},
		notices: crashNotices(),
	}.run(t)
}

// crash is a power cut of one host of the thin cluster while a verb stands at a
// failpoint, and while a guest writes a journal. The volumes come back on the other
// host, which is the master then, and the host comes back to the cluster.
type crash struct {
	journal
	at string // failpoint
}

// The crashes, in the order in which they come: what was granted is being put to
// use; the header names the new metadata, and no device runs on them yet; the map
// has the volume attaching, and the metadata lack it; the mapping of a volume is
// stored, and the map has it detaching.
func crashInGrant() crash    { return crash{journal{"grant", 256}, "thin.use.discarded"} }
func crashInHandOver() crash { return crash{journal{"handover", 32}, "thin.handover.committed"} }
func crashInAttach() crash   { return crash{journal{"attach", 32}, "thin.attach.begun"} }
func crashInDetach() crash   { return crash{journal{"detach", 32}, "thin.detach.stored"} }

func (c crash) welcome() string { return "may join again after " + c.volume }
func (c crash) back() string    { return "is back after " + c.volume }

// crashNotices are all that is pinned.
func crashNotices() []string {
	all := []string{"cluster made", "about to write", "no master", "out of space", "supplied"}
	for _, c := range []crash{crashInGrant(), crashInHandOver(), crashInAttach(), crashInDetach()} {
		all = append(all, c.notice(), c.welcome(), c.back())
	}
	return all
}

const (
	masterUnit  = "diskhook-thin-master@lab.service"
	monitorUnit = "diskhook-thin-monitor@lab.service"
	// failing is a diskhook that has failpoints; passedLog is where those are that
	// it passed.
	failing   = "/usr/local/bin/diskhook.failpoints"
	passedLog = "/run/failpoints"
)

// stop is what has it stop at the crash's failpoint until the power goes.
func (c crash) stop() []string {
	return []string{"DISKHOOK_FAILPOINT=" + c.at + "=sleep:1h", "DISKHOOK_FAILPOINT_LOG=" + passedLog}
}

// standing runs a verb until it stands at the crash's failpoint.
func (m labMachine) standing(c crash, args ...string) {
	m.Helper()
	m.run("cp", "diskhook.failpoints", failing)
	verb := exec.Command(failing, patient(args...)...)
	verb.Env = append(os.Environ(), c.stop()...)
	verb.Stderr = os.Stderr
	m.must(verb.Start())
	m.reaches(c)
}

func (m labMachine) reaches(c crash) {
	m.Helper()
	m.within("failpoint "+c.at, func() bool {
		log, _ := os.ReadFile(passedLog)
		return strings.Contains(string(log), c.at+"\n")
	})
}

// away has no master while the other host needs one.
func (m labMachine) away() {
	m.Helper()
	m.await("about to write")
	m.run("systemctl", "stop", masterUnit)
	m.tell("no master", "")
	m.await("out of space")
	m.run("systemctl", "start", masterUnit)
	m.await("supplied")
}

// starved waits until the pool has no block left, and the writer waits.
func (m labMachine) starved(w *writing) {
	m.Helper()
	m.within("out of space", func() bool {
		return strings.Contains(m.run("dmsetup", "status", "--noflush", "--target", "thin-pool"), " out_of_data_space ")
	})
	m.Logf("%s, %s: out of space after %d records", m.name, m.uptime(), w.acknowledged.Load())
}

// grantCrash writes into a pool that runs out of space, and goes on when the master
// is back. Then the power goes while more that it granted is put to use.
func (m labMachine) grantCrash() {
	m.Helper()
	c := crashInGrant()
	m.attachJournal(c.journal)
	m.tell("about to write", "")
	m.await("no master")
	w := m.writeJournal(c.journal)
	m.starved(w)
	m.tell("out of space", "")
	m.more(w, 8)
	m.tell("supplied", "")
	m.run("cp", "diskhook.failpoints", failing)
	m.write("/run/systemd/system/"+monitorUnit+".d/failpoint.conf", "[Service]\nExecStart=\nExecStart="+failing+" -v thin monitor --cluster lab\n"+
		"Environment="+strings.Join(c.stop(), " ")+"\n", 0o644)
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "restart", monitorUnit)
	m.reaches(c)
	m.more(w, 4)
	m.cutPower()
}

// cutIn cuts the power while a verb stands at the crash's failpoint, and a journal is
// being written, or held back by that.
func (m labMachine) cutIn(c crash, args ...string) {
	m.Helper()
	m.attachJournal(c.journal)
	w := m.writeJournal(c.journal)
	m.more(w, 8)
	m.standing(c, args...)
	if c != crashInHandOver() {
		m.more(w, 4)
	}
	m.cutPower()
}

// recovers takes the volumes of a host back whose power was cut, once there is
// evidence that it cannot write, lets the host in again, and wants all that it
// wrote. It becomes the master for that, if it is not.
func (m labMachine) recovers(c crash, host, boot string) {
	m.Helper()
	m.await(ended(boot))
	s, first := m.status(), c == crashInGrant()
	if first {
		m.refused(m.try("", "diskhook", "thin", "recover", host), 7, "host "+host, "not fenced", "on-fenced")
		// A name that comes through a pipe is nobody's word.
		m.refused(m.try(host+"\n", "diskhook", "thin", "on-fenced", host), 2, "nobody is at a terminal", "--evidence")
	} else {
		if c == crashInHandOver() {
			m.refused(m.try("", "diskhook", "thin", "on-master", "--epoch", fmt.Sprint(s.Epoch)), 4, "epoch")
		}
		m.thin("on-master", "--epoch", fmt.Sprint(s.Epoch+1))
	}
	m.thin("on-fenced", "--evidence", "operator:"+boot+" is off", host)
	m.thinCheck(s, "lun", host)
	if first {
		// The metadata of a host that is fenced are looked at; nothing but that is wrong.
		m.refused(m.try("", "diskhook", "thin", "check"), 8, "it is fenced", "1 problems")
	}
	if text := m.thin("recover", host); strings.Contains(text, "suspect") {
		m.Errorf("recover: %s", text)
	}
	m.thin("check")
	m.thin("init-host", "--rejoin", host)
	m.tell(c.welcome(), "")
	m.thin("attach", c.volume)
	m.acknowledged(c.journal)
	if first {
		m.thin("detach", c.volume) // right after somebody had it open
	}
}

// rejoins is let in again when its volumes have been recovered, and not before.
func (m labMachine) rejoins(c crash) {
	m.Helper()
	if c == crashInHandOver() {
		m.refused(m.try("", "diskhook", "thin", "on-join"), 7, "host "+m.name, "init-host --rejoin "+m.name)
	}
	m.await(c.welcome())
	m.thin("on-join")
	m.tell(c.back(), "")
}

// crashAlpha makes the cluster and two volumes that share blocks, is the master while
// the other host loses its power, and loses its own when it attaches a volume.
func crashAlpha(m labMachine) {
	m.makeCluster("128M") // which is soon full
	m.thin("create", "one", "64M")
	m.thin("attach", "one")
	m.fill("one", 'b', 0, 4*mib)
	m.thin("snapshot", "one", "two")
	m.fill("one", 'a', 1*mib, 3*mib)
	m.away()
	m.recovers(crashInGrant(), "beta", "beta")
	m.await(crashInGrant().back())
	m.cutIn(crashInHandOver(), "attach", "two") // with volume one, too
}

// crashBeta is what beta does at the same time.
func crashBeta(m labMachine) {
	m.joinCluster()
	m.grantCrash()
}

// betaAgain is master from alpha's crash on, until its own.
func betaAgain(m labMachine) {
	m.rejoins(crashInGrant())
	m.recovers(crashInHandOver(), "alpha", "alpha")
	m.thin("attach", "two")
	m.holds("two", 'b', 0, 4*mib)
	m.await(crashInHandOver().back())
	m.cutIn(crashInAttach(), "attach", "one") // with volume two, too
}

// alphaAgain is master after beta's second crash, until its own.
func alphaAgain(m labMachine) {
	m.rejoins(crashInHandOver())
	m.recovers(crashInAttach(), "beta", "beta again")
	m.thin("attach", "one")
	m.holdsOne()
	m.fill("one", 'd', 4*mib, 5*mib)
	m.await(crashInAttach().back())
	m.cutIn(crashInDetach(), "detach", "one")
}

// betaAtLast finds everything on it.
func betaAtLast(m labMachine) {
	m.rejoins(crashInAttach())
	m.recovers(crashInDetach(), "alpha", "alpha again")
	m.thin("attach", "one")
	m.holdsOne()
	m.holds("one", 'd', 4*mib, 5*mib)
	m.thin("attach", "two")
	m.holds("two", 'b', 0, 4*mib)
	m.thin("on-leave")
	m.thin("check", "--offline")
	m.cutPower()
}
