// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"diskhook/storage/thin/claim"
)

// The domains whose local copies are volumes in the pool of TestThinDomain's host: the
// process that makes the first copy is killed, and the power goes while the second one
// is made.
func pooled() domain    { return named("pooled", disk{"vda", "thin", "slow"}) }
func pooledCut() domain { return named("pooled-cut", disk{"vda", "thin", "slow"}) }

// makesLocalCopies leaves a copy that a guest wrote to, and one that is unfinished and
// held where some of it is known to be there.
func (m labMachine) makesLocalCopies() {
	m.Helper()
	chain{name: "slow", seed: 70, data: slow}.create(m.T, shared)
	m.configure(map[string]string{"local.rate": `"768KiB"`, "local.deadline": `"20m"`}) // a cursor comes before the end
	m.run("cp", "--remove-destination", "diskhook.failpoints", "/usr/bin/diskhook")

	d := m.bind(pooled())
	m.holdCopy(d, "transfer.cursor")
	start := m.starting(d)
	m.within("some of the copy is known to be there", func() bool { return strings.Contains(passed(d), "transfer.cursor\n") })
	m.run("systemctl", "kill", "--signal=KILL", "diskhook-copy-*")
	m.refused(<-start, 1, "disk vda", "its copy process died")
	m.run("rm", failpoints)
	m.run("systemctl", "daemon-reload")
	m.goesOn(d)
	m.writes(d.link("vda"), 0x77, 3*mib)
	m.stopped(d)

	cut := m.bind(pooledCut())
	m.holdCopy(cut, "transfer.cursor")
	m.must(m.hookCommand(cut, "prepare", "begin").Start()) // it waits until the power goes
	m.within("some of the next is known to be there", func() bool { return strings.Contains(passed(cut), "transfer.cursor\n") })
	m.run("sync", "-f", cut.file())
}

// hasLocalCopy starts the domain whose copy was ready when the power went. Nobody is
// the master.
func (m labMachine) hasLocalCopy() {
	m.Helper()
	d := pooled()
	m.started(d)
	m.reads(d.link("vda"), 0x77, 3*mib)
	m.stopped(d)
}

// endsLocalCopies makes the other copy whole and gives both up.
func (m labMachine) endsLocalCopies() {
	m.Helper()
	m.configure(map[string]string{"local.deadline": `"20m"`})
	m.goesOn(pooledCut())
	m.stopped(pooledCut())
	m.forget(pooled(), pooledCut())
	if names := m.thin("status", "-o", "name"); names != "vm" {
		m.Errorf("the cluster has volumes %q", names)
	}
	for _, d := range []domain{pooled(), pooledCut()} {
		if l := m.localLabel(d); l != nil || exists(device(d.copyName("vda"))) {
			m.Errorf("%s: its copy was given up, and there is label %+v, or its device", d.name, l)
		}
	}
}

// goesOn starts a domain whose copy is unfinished: the same volume becomes whole, and
// what was known to be there is not written again.
func (m labMachine) goesOn(d domain) {
	m.Helper()
	before := m.localLabel(d)
	if before == nil || !slices.Contains(before.Tags, "UPDATING") || m.receipt(d.id, "vda") != nil {
		m.Fatalf("%s: not a copy that is unfinished: %+v", d.name, before)
	}
	done, written := m.cursorOf(before.Volume.String()), m.written(d)
	if done <= 0 || done > oddSize { // all of it, where the copy was not slower than the cursor
		m.Errorf("%s: %d bytes are known to be copied", d.name, done)
	}
	m.started(d)
	m.sameAsSource(d)
	after, r := m.localLabel(d), m.receipt(d.id, "vda")
	if after == nil || after.Volume != before.Volume || slices.Contains(after.Tags, "UPDATING") {
		m.Errorf("%s: label %+v, was %+v", d.name, after, before)
	}
	if r == nil || r.Copy != before.Volume.String() || !r.Used || r.Backend != "thin" {
		m.Errorf("%s: receipt %+v", d.name, r)
	}
	more := m.written(d) - written
	m.Logf("%s: %d bytes were there, %d of %d were written after that", d.name, done, more, oddSize)
	if more > oddSize-done {
		m.Errorf("%s: %d bytes were written to the %d after %d", d.name, more, oddSize-done, done)
	}
}

// localLabel is that of the copy of a domain's disk; nil is none.
func (m labMachine) localLabel(d domain) *claim.Label {
	m.Helper()
	text, err := os.ReadFile(filepath.Join("/var/lib/diskhook/thin/lab.labels", d.copyName("vda")+".json"))
	if os.IsNotExist(err) {
		return nil
	}
	m.must(err)
	var l claim.Label
	m.must(json.Unmarshal(text, &l))
	return &l
}

// written is how many bytes were written to the device of a copy since it is there.
func (m labMachine) written(d domain) int64 {
	m.Helper()
	var node unix.Stat_t
	m.must(unix.Stat(device(d.copyName("vda")), &node))
	stat, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(node.Rdev), unix.Minor(node.Rdev)))
	m.must(err)
	sectors, err := strconv.ParseInt(strings.Fields(string(stat))[6], 10, 64)
	m.must(err)
	return sectors * 512
}
