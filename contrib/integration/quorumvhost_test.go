// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// shared is a definition whose guest's memory other processes can map.
func shared(text string) string {
	return strings.Replace(text, "  <vcpu>1</vcpu>", "  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n  <vcpu>2</vcpu>", 1)
}

// TestQuorumVhostUser: a guest boots from a set over vhost-user, as QEMU's own
// user, goes on when one replica is wrong, and what it wrote is in all.
func TestQuorumVhostUser(t *testing.T) {
	image := diskImage(false)
	removed(t, "vhost")
	d := newDomain(t, "vhost")
	writeImage(t, d.image(), image)
	d.disks = diskXML("file", d.image(), "raw", "vda")
	d.define()
	diskhook(t, 0, "quorum", "build", "--replicas", strings.Join(d.replicas(), ","), "--threshold", "2", "--from", d.image(), "vhost")
	apply := []string{"domain", "apply", "--quorum", "vda=vhost,transport=vhost-user", "vhost"}
	refused := func(code int, words ...string) {
		t.Helper()
		before, state := d.dumped(), digest(t, d.dir)
		said := diskhook(t, code, apply...)
		says(t, said, words...)
		if lines := strings.Split(strings.TrimSpace(said), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], "hint: ") {
			t.Errorf("not one line and its hint:\n%s", said)
		}
		if d.dumped() != before || digest(t, d.dir) != state {
			t.Error("the refused apply changed something")
		}
	}
	refused(7, "disk vda", "vhost-user needs memory that is shared", "<memoryBacking>", "transport=nbd")

	d.defineAs(shared(d.xml()))
	daemon := filepath.Join(d.dir, "daemon")
	program := "#!/bin/sh\ncase $* in *vhost-user-blk*) echo \"$0: --export: Parameter 'type' does not accept value 'vhost-user-blk'\" >&2; exit 1; esac\nexec qemu-storage-daemon \"$@\"\n"
	if err := os.WriteFile(daemon, []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	configured(t, roots+"[quorum]\ndaemon = \""+daemon+"\"\n")
	refused(7, "disk vda", daemon, "vhost-user-blk", "transport=nbd")
	configured(t, roots)

	diskhook(t, 0, apply...)
	socket := "/run/diskhook/quorum/vhost/vhost.sock"
	says(t, d.dumped(), "<disk type='vhostuser'", "path='"+socket+"'", "urn:diskhook:1", d.image())
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(try(t, "tail", "-n", "60", "/run/diskhook/hook.log").stdout)
		}
	})
	d.start()
	d.boots(1)
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Errorf("the socket is not QEMU's alone: %v, %v", st, err)
	}
	d.destroy()
	if exists(socket) {
		t.Error("it is still served")
	}
	says(t, diskhook(t, 0, "quorum", "verify", "vhost"), "all replicas are equal")
	holds(t, d.replicas()[0], after(image, 1))
	holds(t, d.image(), image)

	patch(t, d.replicas()[2], sector, 7)
	d.start()
	d.boots(2)
	eventually(t, func() bool { return strings.Contains(diskhook(t, 0, "quorum", "status", "vhost"), "mismatch") }, "status does not tell")
	d.destroy()
	diskhook(t, 0, "quorum", "resync", "vhost")
	holds(t, d.replicas()[2], after(image, 2))

	diskhook(t, 0, "domain", "revert", "--export", filepath.Join(d.dir, "back.raw"), "vhost")
	holds(t, filepath.Join(d.dir, "back.raw"), after(image, 2))
	d.start()
	d.boots(3)
}
