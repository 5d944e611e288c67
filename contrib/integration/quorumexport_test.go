// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"diskhook/xmlrewrite"
)

// TestQuorumExportRuns starts guests with two processors on what ExportQuorum
// writes, served by a daemon of QEMU's own.
func TestQuorumExportRuns(t *testing.T) {
	for _, c := range []struct {
		name, export string
		lower        xmlrewrite.ExportQuorum
	}{
		{"nbd", "type=nbd,id=e,node-name=votes,writable=on,name=db", xmlrewrite.ExportQuorum{Name: "db"}},
		{"vhost-user", "type=vhost-user-blk,id=e,node-name=votes,writable=on,addr.type=unix,addr.path=%s", xmlrewrite.ExportQuorum{VhostUser: true, Reconnect: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDomain(t, "export")
			image := diskImage(false)
			children := ""
			for i := range 3 {
				path := filepath.Join(d.dir, fmt.Sprint(i))
				writeImage(t, path, image)
				children += fmt.Sprintf(",children.%d.driver=file,children.%[1]d.filename=%s", i, path)
			}
			socket := filepath.Join(d.dir, "s")
			args := []string{"--blockdev", "driver=quorum,node-name=votes,vote-threshold=2" + children}
			if c.name == "nbd" {
				args = append(args, "--nbd-server", "addr.type=unix,addr.path="+socket, "--export", c.export)
			} else {
				args = append(args, "--export", fmt.Sprintf(c.export, socket))
			}
			daemon := exec.Command("qemu-storage-daemon", args...)
			daemon.Stderr = os.Stderr
			if err := daemon.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
			eventually(t, func() bool { return exists(socket) }, "the daemon does not serve")
			given(t, d.dir)

			d.disks = raw("vda")
			c.lower.Target, c.lower.Socket = "vda", socket
			d.defineAs(string(rewritten(t, shared(d.xml()), c.lower).Bytes()))
			d.start()
			d.boots(1)
			live := rewritten(t, run(t, "virsh", "-q", "dumpxml", d.uuid))
			unchanged(t, string(live.Bytes()), c.lower)
			if disk, _ := live.Disk("vda"); disk.QuorumPath() != socket {
				t.Errorf("the running disk is at %q", disk.QuorumPath())
			}
			d.destroy()
			for i := range 3 {
				holds(t, filepath.Join(d.dir, fmt.Sprint(i)), after(image, 1))
			}
		})
	}
}
