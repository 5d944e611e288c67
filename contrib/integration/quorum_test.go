// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// replicated is a domain whose disk is a set of three replicas, filled with an
// image, one of them qcow2.
func replicated(t *testing.T, name string, image []byte) *domain {
	t.Helper()
	return replicatedAs(t, name, image, "")
}

// replicatedAs has the disk lowered as the options say.
func replicatedAs(t *testing.T, name string, image []byte, options string) *domain {
	t.Helper()
	removed(t, name)
	d := newDomain(t, name)
	writeImage(t, d.image(), image)
	d.disks = diskXML("file", d.image(), "raw", "vda")
	d.define()
	if strings.Contains(options, "vhost-user") {
		d.defineAs(shared(d.xml()))
	}
	diskhook(t, 0, "quorum", "build", "--replicas", strings.Join(d.replicas(), ","), "--threshold", "2", "--from", d.image(), name)
	diskhook(t, 0, "domain", "apply", "--quorum", "vda="+name+options, name)
	return d
}

// removed takes a set away once its domain is gone, so that a test can run twice.
func removed(t *testing.T, set string) {
	t.Cleanup(func() {
		var status struct {
			Sets []struct {
				Set struct {
					User *struct{ Domain, Key string }
				}
			}
		}
		_ = json.Unmarshal([]byte(try(t, "/usr/bin/diskhook", "quorum", "status", "-o", "json", set).stdout), &status)
		if len(status.Sets) == 1 && status.Sets[0].Set.User != nil {
			u := status.Sets[0].Set.User
			try(t, "/usr/bin/diskhook", "quorum", "forget", "--discard-guest-data", u.Domain, u.Key)
		}
		if gone := try(t, "/usr/bin/diskhook", "quorum", "remove", set); gone.code != 0 {
			t.Errorf("the set stays: %s", gone.stderr)
		}
	})
}

func (d *domain) replicas() []string {
	return []string{filepath.Join(d.dir, "r1.raw"), filepath.Join(d.dir, "r2.qcow2"), filepath.Join(d.dir, "r3.raw")}
}

func (d *domain) socket() string { return "/run/diskhook/quorum/" + d.name + "/nbd.sock" }

// TestQuorum: a guest boots from a set that is served to it, as QEMU's own
// user, and goes on when one replica is wrong, and the next time when one is
// gone; what it wrote is in all others.
func TestQuorum(t *testing.T) {
	image := diskImage(false)
	d := replicated(t, "quorum", image)
	says(t, d.dumped(), "protocol='nbd' name='quorum'", d.socket(), "error_policy='stop'", "urn:diskhook:1", d.image())
	if exists(d.socket()) {
		t.Error("it is served before it is started")
	}
	d.start()
	d.boots(1)
	if st, err := os.Stat(d.socket()); err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Errorf("the socket is not QEMU's alone: %v, %v", st, err)
	}
	says(t, diskhook(t, 4, "quorum", "verify", "quorum"), "served to a guest")
	d.destroy()
	if exists(d.socket()) {
		t.Error("it is still served")
	}
	says(t, diskhook(t, 0, "quorum", "verify", "quorum"), "all replicas are equal")
	holds(t, d.replicas()[0], after(image, 1))
	holds(t, d.image(), image)

	// Replica 3 lies about the number of boots.
	patch(t, d.replicas()[2], sector, 7)
	d.start()
	d.boots(2)
	eventually(t, func() bool { return strings.Contains(diskhook(t, 0, "quorum", "status", "quorum"), "mismatch") }, "status does not tell")
	d.destroy()
	diskhook(t, 0, "quorum", "resync", "quorum")
	holds(t, d.replicas()[2], after(image, 2))

	// And is gone.
	if err := os.Remove(d.replicas()[2]); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.boots(3)
	d.destroy()
	says(t, diskhook(t, 0, "quorum", "status", "quorum"), "r3", "no such file")

	// One of three is no majority.
	if err := os.Rename(d.replicas()[1], d.replicas()[1]+".away"); err != nil {
		t.Fatal(err)
	}
	d.startVetoed("disk vda: replica set quorum: 1 of its replicas", "2 are needed", "diskhook quorum resync --from r1 quorum")
	if err := os.Rename(d.replicas()[1]+".away", d.replicas()[1]); err != nil {
		t.Fatal(err)
	}
	diskhook(t, 0, "quorum", "replace", "quorum", "r3", filepath.Join(d.dir, "r4.raw"))
	holds(t, filepath.Join(d.dir, "r4.raw"), after(image, 3))

	says(t, diskhook(t, 4, "domain", "revert", "quorum"), "what the guest wrote is in the replica set quorum")
	diskhook(t, 0, "domain", "revert", "--export", filepath.Join(d.dir, "back.raw"), "quorum")
	holds(t, filepath.Join(d.dir, "back.raw"), after(image, 3))
	d.start()
	d.boots(4)
}

// patch changes one byte of a file.
func patch(t *testing.T, path string, at int64, value byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{value}, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// busySector is a guest that counts in the first word of its disk's second
// sector, and writes that sector, as long as nothing fails; then it says E.
func busySector() []byte {
	image := diskImage(false)
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0xbe, 0x60, 0x7c, // mov si, packet
		0xff, 0x06, 0x00, 0x7e, // again: inc word [0x7e00]
		0xb8, 0x00, 0x43, // mov ax, 0x4300 (extended write)
		0xcd, 0x13, // int 0x13
		0x73, 0xf5, // jnc again
		0xb0, 'E', // mov al, 'E'
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xee,             // out dx, al
		0xf4, 0xeb, 0xfd, // idle: hlt; jmp idle
	}
	copy(image, code)
	return image
}

// TestQuorumDaemonKilled: the guest waits for a daemon that was killed under
// it, sees no error, and writes on; no replica is left behind.
func TestQuorumDaemonKilled(t *testing.T) {
	for _, transport := range []string{"nbd", "vhost-user"} {
		t.Run(transport, func(t *testing.T) { daemonKilled(t, transport) })
	}
}

func daemonKilled(t *testing.T, transport string) {
	set := "killed-" + transport
	d := replicatedAs(t, set, busySector(), ",transport="+transport)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(try(t, "virsh", "domstate", "--reason", d.uuid), "\n", try(t, "tail", "-n", "20", "/run/diskhook/hook.log"))
		}
	})
	d.start()
	count := func() uint16 {
		b, err := os.ReadFile(d.replicas()[0])
		if err != nil || len(b) < 2*sector {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint16(b[sector:])
	}
	progress := func(what string) {
		t.Helper()
		was := count()
		eventually(t, func() bool { return count() != was }, what)
	}
	progress("the guest does not write")
	for range 3 {
		var daemons []struct {
			PID int `json:"pid"`
		}
		if err := json.Unmarshal([]byte(content(t, "/run/diskhook/quorum/"+set+"/daemon.json")), &daemons); err != nil || len(daemons) == 0 {
			t.Fatal(daemons, err)
		}
		for _, daemon := range daemons {
			if err := syscall.Kill(daemon.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, func() bool { return strings.Contains(diskhook(t, 0, "quorum", "list"), "yes") }, "it is not served again")
		eventually(t, func() bool { return d.state() == "running" }, "the guest is not resumed")
		progress("the guest does not go on")
	}
	if said := content(t, d.serial()); strings.Contains(said, "E") {
		t.Errorf("the guest saw an error: %q", said)
	}
	d.destroy()
	diskhook(t, 0, "quorum", "resync", set)
	says(t, diskhook(t, 0, "quorum", "verify", set), "all replicas are equal")
}

// TestQuorumInline: QEMU itself opens the replicas, as its own user, and what
// differs is made equal before the next start.
func TestQuorumInline(t *testing.T) {
	image := diskImage(false)
	removed(t, "inline")
	d := newDomain(t, "inline")
	writeImage(t, d.image(), image)
	d.disks = diskXML("file", d.image(), "raw", "vda")
	d.define()
	before := d.dumped()
	diskhook(t, 0, "quorum", "build", "--replicas", strings.Join(d.replicas(), ","), "--threshold", "2", "--from", d.image(), "inline")
	diskhook(t, 0, "domain", "apply", "--quorum", "vda=inline,lower=inline", "inline")
	says(t, d.dumped(), "<source file='"+d.replicas()[0]+"'", "<qemu:commandline>", "libvirt-1-format", "<qemu:override>")
	d.start()
	d.boots(1)
	says(t, diskhook(t, 4, "quorum", "verify", "inline"), "served to a guest")
	d.destroy()
	if st, err := os.Stat(d.replicas()[2]); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("a replica is not given back: %v, %v", st, err)
	}
	says(t, diskhook(t, 0, "quorum", "verify", "inline"), "all replicas are equal")
	holds(t, d.replicas()[2], after(image, 1))

	patch(t, d.replicas()[2], sector, 7)
	d.start()
	d.boots(2)
	d.destroy()
	holds(t, d.replicas()[2], after(image, 2))

	if err := os.Remove(d.replicas()[2]); err != nil {
		t.Fatal(err)
	}
	d.startVetoed("disk vda: replica set inline", "r3")
	diskhook(t, 0, "domain", "revert", "--discard-guest-data", "inline")
	same(t, before, d.dumped())
	d.start()
	d.boots(1)
}
