// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestQuorumVhostUserLimits: what libvirt cannot do with a disk that QEMU only
// passes on, and that a guest can be saved all the same.
func TestQuorumVhostUserLimits(t *testing.T) {
	image := diskImage(false)
	d := replicated(t, "limits", image, ",transport=vhost-user")
	d.start()
	d.boots(1)
	for _, c := range []struct {
		verb, why string
		args      []string
	}{
		{"domblkstat", "not supported", []string{"vda"}},
		{"domblkinfo", "not supported", []string{"vda"}},
		{"blkdeviotune", "not supported", []string{"vda", "--total-iops-sec", "100", "--live"}},
		{"blockresize", "not supported", []string{"vda", "4M"}},
		{"blockcopy", "not supported", []string{"vda", filepath.Join(d.dir, "copy.raw"), "--transient-job"}},
		{"snapshot-create-as", "nothing selected for snapshot", []string{"s1", "--disk-only", "--no-metadata"}},
	} {
		if r := try(t, "virsh", append([]string{"-q", c.verb, d.uuid}, c.args...)...); r.code == 0 || !strings.Contains(r.stderr, c.why) {
			t.Errorf("%s: exit %d: %s", c.verb, r.code, r.stderr)
		}
	}
	run(t, "virsh", "-q", "managedsave", d.uuid)
	d.start()
	if d.state() != "running" {
		t.Errorf("restored, it is %s", d.state())
	}
	d.destroy()
	says(t, diskhook(t, 0, "quorum", "verify", "limits"), "all replicas are equal")
	holds(t, d.replicas()[0], after(image, 1))
}

// TestQuorumInlineSnapshot: libvirt takes a snapshot of the first replica alone.
// What the guest wrote since is in the others, and the next start is refused until
// the domain names the replica again, which then gets it from them.
func TestQuorumInlineSnapshot(t *testing.T) {
	image := diskImage(false)
	d := replicated(t, "snapshot", image, ",lower=inline")
	d.start()
	d.boots(1)
	if r := try(t, "virsh", "-q", "blockcopy", d.uuid, "vda", filepath.Join(d.dir, "copy.raw"), "--transient-job"); r.code == 0 {
		t.Error("a block job has taken one replica for the disk")
	}
	run(t, "virsh", "-q", "snapshot-create-as", d.uuid, "s1", "--disk-only", "--no-metadata")
	d.destroy()
	d.startVetoed("disk vda: its QEMU would open ", "/r1.s1 as the first replica", d.replicas()[0], "diskhook domain apply snapshot")
	diskhook(t, 0, "domain", "apply", d.name)
	d.start()
	d.boots(2)
	d.destroy()
	for _, path := range []string{d.replicas()[0], d.replicas()[2]} {
		holds(t, path, after(image, 2))
	}
}
