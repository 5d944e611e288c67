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

// replicated is a domain whose disk is a set of three replicas of its name, filled
// with an image, one of them qcow2, and lowered as the options say.
func replicated(t *testing.T, name string, image []byte, options string) *domain {
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

// shared is a definition whose guest's memory other processes can map.
func shared(text string) string {
	return strings.Replace(text, "  <vcpu>1</vcpu>", "  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>\n  <vcpu>2</vcpu>", 1)
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

// TestQuorum: a guest boots from a set that is served to it, as QEMU's own
// user, and goes on when one replica is wrong, and the next time when one is
// gone; what it wrote is in all others.
func TestQuorum(t *testing.T) {
	for _, c := range []struct {
		transport, socket string
		disk              []string
	}{
		{"nbd", "nbd.sock", []string{"protocol='nbd' name='quorum-nbd'", "error_policy='stop'"}},
		{"vhost-user", "vhost.sock", []string{"<disk type='vhostuser'"}},
	} {
		t.Run(c.transport, func(t *testing.T) {
			set := "quorum-" + c.transport
			d := replicated(t, set, diskImage(false), ",transport="+c.transport)
			socket := filepath.Join("/run/diskhook/quorum", set, c.socket)
			says(t, d.dumped(), append(c.disk, socket, "urn:diskhook:1", d.image())...)
			d.served(socket)
			d.outvotes()
			d.lacksReplicas()
			d.givesBack()
		})
	}
}

// served runs the guest of a set for the first time.
func (d *domain) served(socket string) {
	t, image := d.t, diskImage(false)
	t.Helper()
	if exists(socket) {
		t.Error("it is served before it is started")
	}
	d.start()
	d.boots(1)
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Errorf("the socket is not QEMU's alone: %v, %v", st, err)
	}
	says(t, diskhook(t, 4, "quorum", "verify", d.name), "served to a guest")
	d.destroy()
	if exists(socket) {
		t.Error("it is still served")
	}
	says(t, diskhook(t, 0, "quorum", "verify", d.name), "all replicas are equal")
	holds(t, d.replicas()[0], after(image, 1))
	holds(t, d.image(), image)
}

// outvotes: replica 3 lies about the number of boots.
func (d *domain) outvotes() {
	d.t.Helper()
	patch(d.t, d.replicas()[2], sector, 7)
	d.start()
	d.boots(2)
	eventually(d.t, func() bool { return strings.Contains(diskhook(d.t, 0, "quorum", "status", d.name), "mismatch") }, "status does not tell")
	d.destroy()
	diskhook(d.t, 0, "quorum", "resync", d.name)
	holds(d.t, d.replicas()[2], after(diskImage(false), 2))
}

// lacksReplicas: replica 3 is gone, then replica 2 as well: one of three is no
// majority.
func (d *domain) lacksReplicas() {
	t := d.t
	t.Helper()
	if err := os.Remove(d.replicas()[2]); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.boots(3)
	d.destroy()
	says(t, diskhook(t, 0, "quorum", "status", d.name), "r3", "no such file")

	back := moved(t, d.replicas()[1])
	d.startVetoed("disk vda: replica set "+d.name+": 1 of its replicas", "2 are needed", "diskhook quorum resync --from r1 "+d.name)
	back()
	r4 := filepath.Join(d.dir, "r4.raw")
	diskhook(t, 0, "quorum", "replace", d.name, "r3", r4)
	holds(t, r4, after(diskImage(false), 3))
}

// givesBack: the domain gets its own disk back, with what the guest wrote.
func (d *domain) givesBack() {
	t, back := d.t, filepath.Join(d.dir, "back.raw")
	t.Helper()
	says(t, diskhook(t, 4, "domain", "revert", d.name), "what the guest wrote is in the replica set "+d.name)
	diskhook(t, 0, "domain", "revert", "--export", back, d.name)
	holds(t, back, after(diskImage(false), 3))
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

// TestQuorumDaemonKilled: the guest waits for a daemon that was killed under
// it, sees no error, and writes on; no replica is left behind.
func TestQuorumDaemonKilled(t *testing.T) {
	for _, transport := range []string{"nbd", "vhost-user"} {
		t.Run(transport, func(t *testing.T) { daemonKilled(t, transport) })
	}
}

func daemonKilled(t *testing.T, transport string) {
	set := "killed-" + transport
	d := replicated(t, set, tireless(countWord, writeSector), ",transport="+transport)
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
	d := replicated(t, "inline", image, ",lower=inline")
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
	reverted := d.dumped()
	d.define()
	same(t, d.dumped(), reverted)
	d.start()
	d.boots(1)
}
