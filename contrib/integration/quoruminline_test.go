// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
)

// quorumStatus is what of `quorum status` tests look at.
type quorumStatus struct {
	Veto     string `json:"veto"`
	Replicas []struct {
		ID    string `json:"id"`
		Doubt *struct {
			Reason string `json:"reason"`
		} `json:"doubt"`
	} `json:"replicas"`
	Live *struct {
		PID      int  `json:"pid"`
		Heard    bool `json:"heard"`
		Failures int  `json:"failures"`
	} `json:"live"`
	Events []struct {
		Event   string `json:"event"`
		Replica string `json:"replica"`
		Reason  string `json:"reason"`
		Offset  int64  `json:"offset"`
		Length  int64  `json:"length"`
	} `json:"events"`
}

func statusOf(t *testing.T, set string) quorumStatus {
	t.Helper()
	var all struct{ Sets []quorumStatus }
	if err := json.Unmarshal([]byte(run(t, "/usr/bin/diskhook", "quorum", "status", "-o", "json", set)), &all); err != nil || len(all.Sets) != 1 {
		t.Fatal(all, err)
	}
	return all.Sets[0]
}

// suspects are the replicas that a set's status calls so.
func (s quorumStatus) suspects() string {
	var words []string
	for _, r := range s.Replicas {
		if r.Doubt != nil {
			words = append(words, r.ID+" "+r.Doubt.Reason)
		}
	}
	return strings.Join(words, ", ")
}

func (s quorumStatus) has(event, replica string) bool {
	for _, e := range s.Events {
		if e.Event == event && e.Replica == replica {
			return true
		}
	}
	return false
}

// TestQuorumInlineReports: what a domain's own QEMU reports of replicas is
// heard through libvirt, also by who comes after libvirt or the listener was
// killed, remembered, and told; the guest goes on as long as a majority agrees.
func TestQuorumInlineReports(t *testing.T) {
	image := tireless(readSector)
	d := replicated(t, "reports", image, ",lower=inline")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(try(t, "tail", "-n", "40", "/run/diskhook/hook.log").stdout)
		}
	})
	said := func() string { return content(t, d.serial()) }
	heard := func(s quorumStatus) bool { return s.Live != nil && s.Live.Heard }
	becomes := func(is func(quorumStatus) bool, otherwise string) {
		t.Helper()
		eventually(t, func() bool { return is(statusOf(t, "reports")) }, otherwise)
	}

	d.start()
	becomes(heard, "nobody listens")
	if s := statusOf(t, "reports").suspects(); s != "" {
		t.Errorf("suspect from the start: %s", s)
	}
	patch(t, d.replicas()[2], sector, 7)
	becomes(func(s quorumStatus) bool {
		return s.suspects() == "r3 mismatch" && s.has("bad", "r3") && s.has("suspect", "r3")
	}, "r3 is not suspect")
	says(t, diskhook(t, 0, "quorum", "status", "reports"), "suspect", "mismatch", "; what QEMU reports of replicas is heard", "bytes 512+512")
	if d.state() != "running" || said() != "" {
		t.Errorf("the guest is %s and says %q", d.state(), said())
	}

	// libvirt is killed, and comes back. The node of the first replica is
	// libvirt's own.
	run(t, "kill", "-KILL", content(t, "/run/libvirtd-sandbox/main/libvirtd.pid"))
	becomes(func(s quorumStatus) bool { return !heard(s) }, "it is not seen that libvirt is away")
	run(t, "libvirtd-ctl", "start")
	becomes(func(s quorumStatus) bool { return heard(s) && s.has("unheard", "") }, "nobody listens after libvirt is back")
	patch(t, d.replicas()[2], sector, 0)
	patch(t, d.replicas()[0], sector, 9)
	becomes(func(s quorumStatus) bool { return s.suspects() == "r1 mismatch, r3 mismatch" }, "r1 is not suspect")

	// Who listens is killed; libvirt's next word to the hook brings another.
	was := statusOf(t, "reports").Live.PID
	if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	run(t, "libvirtd-ctl", "restart")
	becomes(func(s quorumStatus) bool { return heard(s) && s.Live.PID != was }, "nobody listens any more")
	if s := statusOf(t, "reports").suspects(); s != "r1 mismatch, r3 mismatch" || d.state() != "running" || said() != "" {
		t.Errorf("suspects %q; the guest is %s and says %q", s, d.state(), said())
	}

	// Three contents: nobody knows, and the guest is told.
	patch(t, d.replicas()[2], sector, 7)
	becomes(func(s quorumStatus) bool { return s.has("failure", "") && s.Live.Failures > 0 }, "the failure is not told")
	eventually(t, func() bool { return said() == "E" }, "the guest sees no error")
	d.destroy()
	if s := statusOf(t, "reports"); s.suspects() != "r1 mismatch, r3 mismatch" || s.Live != nil {
		t.Errorf("after its end: %+v", s)
	}
	state := digest(t, d.dir)
	d.startVetoed("disk vda: replica set reports", "no majority", "diskhook quorum resync --from")
	if digest(t, d.dir) != state {
		t.Error("the refused start changed a replica")
	}

	patch(t, d.replicas()[2], sector, 0)
	d.start()
	becomes(heard, "nobody listens")
	if s := statusOf(t, "reports").suspects(); s != "" {
		t.Errorf("suspect after all are equal: %s", s)
	}
	d.destroy()
	diskhook(t, 0, "quorum", "resync", "reports")
	says(t, diskhook(t, 0, "quorum", "verify", "reports"), "all replicas are equal")
	holds(t, d.replicas()[0], image)
	if _, err := os.Stat("/run/diskhook/quorum/reports/attended.json"); !os.IsNotExist(err) {
		t.Errorf("what is for a running guest is left: %v", err)
	}
}
