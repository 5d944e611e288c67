// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"slices"

	"diskhook/storage/quorum"
)

// onServer is the replica at serverFile.
const onServer = "r4"

// state waits until a replica is in a state.
func (m machine) state(id, state string) {
	m.Helper()
	var live quorum.Live
	defer func() {
		if m.Failed() {
			m.Logf("%+v", live)
		}
	}()
	m.within(id+" is "+state, func() bool {
		var err error
		live, err = sets().Live(set)
		return err == nil && slices.ContainsFunc(live.Replicas, func(r quorum.LiveReplica) bool { return r.ID == id && r.State == state })
	})
}

// cutOff stops the server and waits until its replica is cut off, and the
// others have a newer generation.
func (m machine) cutOff() {
	m.Helper()
	before := m.serving(0).Generation
	m.run("rpc.nfsd", "0")
	m.state(onServer, quorum.Suspected)
	m.within("the generation rises", func() bool { return m.serving(0).Generation > before })
}

// serverOfReplicaStops: the server of one replica goes under load; the guest
// goes on without that one, which is brought up to date when the server is back.
func serverOfReplicaStops(m machine) {
	d := voting()
	m.started(d)
	m.guestDoes("write -P 0x31 16M 64k", "flush")
	l := m.loaded()
	m.cutOff()
	l.goesOn()
	m.guestDoes("write -P 0x32 17M 64k", "flush", "read -P 0x31 16M 64k")
	status := m.try("", "diskhook", "quorum", "status", set)
	m.answered("quorum status", status)
	m.refused(status, 0, onServer+"       suspect", serverFile, "suspect "+onServer+" hung")
	l.goesOn()

	m.run("rpc.nfsd", "8")
	// The server's grace period first; then the daemon that waited for it goes.
	m.within("the replica is resynced", func() bool {
		r := m.try("", "diskhook", "quorum", "resync", set)
		if r.code != 0 {
			m.Logf("resync: %s", r.output)
		}
		return r.code == 0
	})
	m.state(onServer, quorum.Voting)
	l.goesOn()
	l.ends()
	m.guestDoes("read -P 0x31 16M 64k", "read -P 0x32 17M 64k")
	m.stopped(d)
	m.equalReplicas("")
}

// beforePowerCut leaves a set that is written to, and one replica of which has
// an older generation.
func beforePowerCut(m machine) {
	m.started(voting())
	m.guestDoes("write -P 0x41 18M 64k", "flush")
	m.cutOff()
	m.guestDoes("write -P 0x42 19M 64k", "flush")
	m.loaded()
}

// replicasAfterPowerCut: the replica that was away does not vote, and is brought
// up to date while the guest runs; what was flushed is there, and nothing differs.
func replicasAfterPowerCut(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.quorumHost()
	m.run("vgchange", "-ay", "ovirt-local")
	status := m.try("", "diskhook", "quorum", "status", set)
	m.refused(status, 0, onServer+"       left out", "r1       voting", "r2       voting", "r3       voting")
	if at, lacks := m.patternAt(serverFile, 19<<20), m.patternAt("/dev/ovirt-local/db1", 19<<20); at == 0x42 || lacks != 0x42 {
		m.Errorf("at 19 MiB: %#x on the server, %#x on the volume", at, lacks)
	}

	d, before := voting(), m.noted(quorum.EventResynced, onServer)
	m.started(d)
	m.guestDoes("read -P 0x41 18M 64k", "read -P 0x42 19M 64k", "write -P 0x43 20M 64k")
	m.state(onServer, quorum.Voting)
	m.guestDoes("write -P 0x44 21M 64k", "flush")
	if n := m.noted(quorum.EventResynced, onServer) - before; n != 1 {
		m.Errorf("%s was resynced %d times", onServer, n)
	}
	m.stopped(d)
	m.equalReplicas("")
	for at, pattern := range map[int64]byte{18: 0x41, 19: 0x42, 20: 0x43, 21: 0x44} {
		m.reads(serverFile, pattern, at<<20)
	}
}

// patternAt is the byte at offset.
func (m machine) patternAt(path string, offset int64) byte {
	m.Helper()
	f, err := os.Open(path)
	m.must(err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, offset)
	m.must(err)
	return b[0]
}
