// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestQuorumVhostUserRefused: a disk is not bound over vhost-user to a set that
// could not be served so, and nothing is changed.
func TestQuorumVhostUserRefused(t *testing.T) {
	d := replicated(t, "vhost", diskImage(false), "")
	diskhook(t, 0, "domain", "revert", "vhost")
	refused := func(words ...string) {
		t.Helper()
		before, state := d.dumped(), digest(t, d.dir)
		said := diskhook(t, 7, "domain", "apply", "--quorum", "vda=vhost,transport=vhost-user", "vhost")
		says(t, said, append(words, "disk vda", "transport=nbd")...)
		if lines := strings.Split(strings.TrimSpace(said), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], "hint: ") {
			t.Errorf("not one line and its hint:\n%s", said)
		}
		if d.dumped() != before || digest(t, d.dir) != state {
			t.Error("the refused apply changed something")
		}
	}
	refused("vhost-user needs memory that is shared", "<memoryBacking>")

	d.defineAs(shared(d.xml()))
	daemon := filepath.Join(d.dir, "daemon")
	program := "#!/bin/sh\ncase $* in *vhost-user-blk*) echo \"$0: --export: Parameter 'type' does not accept value 'vhost-user-blk'\" >&2; exit 1; esac\nexec qemu-storage-daemon \"$@\"\n"
	if err := os.WriteFile(daemon, []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	configured(t, roots+"[quorum]\ndaemon = \""+daemon+"\"\n")
	refused(daemon, "vhost-user-blk")
}
