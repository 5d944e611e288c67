// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"strings"
	"testing"
)

const farURI = "qemu+unix:///system?socket=/run/libvirtd-sandbox/far/run/libvirt/libvirt-sock"

// far runs virsh on the second host.
func far(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "virsh", append([]string{"-q", "-c", farURI}, args...)...)
}

// TestMigrate: the destination's hook refuses a domain whose data is on the
// source host, and the domain goes on there.
func TestMigrate(t *testing.T) {
	d := startable(t, "mover")
	d.start()
	d.boots(1)
	copied := digest(t, d.copy())
	for _, how := range [][]string{
		{"--live"},
		{"--live", "--p2p", "--persistent", "--undefinesource"},
		{"--live", "--copy-storage-all"},
	} {
		args := append(append([]string{"migrate", "--unsafe"}, how...), d.uuid, farURI, "--migrateuri", "tcp://127.0.0.1")
		d.vetoed(args, "domain mover: disk vda is bound to local and cannot be migrated",
			"shut the domain down and run `diskhook local export mover vda FILE`")
		if s := d.state(); s != "running" {
			t.Fatalf("%s: the domain is %s", how, s)
		}
		d.linked(true)
		if names := far(t, "list", "--all", "--name"); strings.TrimSpace(names) != "" {
			t.Errorf("%s: the other host has %s", how, names)
		}
	}
	if digest(t, d.copy()) != copied {
		t.Error("the copy was changed")
	}
	// It is no worse for it.
	run(t, "virsh", "-q", "reset", d.uuid)
	eventually(t, func() bool { return content(t, d.serial()) == "12" }, "the guest does not boot again")
	d.destroy()
	d.start()
	d.boots(3)
	d.destroy()

	// Offline, only the definition would go.
	d.vetoed([]string{"migrate", "--offline", "--persistent", d.uuid, farURI}, "cannot be migrated")

	// Copied by hand, it is refused by what the other host is.
	text := strings.ReplaceAll(d.dumped(), "\n", " ")
	write(t, d.dir+"/moved.xml", text)
	far(t, "define", d.dir+"/moved.xml")
	defer far(t, "undefine", d.uuid)
	r := try(t, "virsh", "-q", "-c", farURI, "start", d.uuid)
	says(t, r.stderr, "is for the machine "+content(t, "/etc/machine-id"), "start it there")
	if r.code == 0 || far(t, "domstate", d.uuid) != "shut off" {
		t.Error("it runs on the other host")
	}
}

// TestMigrateUnbound: diskhook is not in the way.
func TestMigrateUnbound(t *testing.T) {
	d := newDomain(t, "free-mover")
	writeImage(t, d.image(), diskImage(false))
	writeImage(t, d.serial(), nil)
	d.disks = diskXML("file", d.image(), "raw", "vda")
	// The hosts share their files, but neither knows that the other has given one to
	// QEMU's user.
	text := strings.ReplaceAll(d.xml(), "'/><target", "'><seclabel model='dac' relabel='no'/></source><target")
	text = strings.Replace(text, "'/></serial>", "'><seclabel model='dac' relabel='no'/></source></serial>", 1)
	for _, path := range []string{d.image(), d.serial()} {
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	d.defineAs(text)
	d.start()
	d.boots(1)
	run(t, "virsh", "-q", "migrate", "--live", "--unsafe", d.uuid, farURI, "--migrateuri", "tcp://127.0.0.1")
	defer far(t, "destroy", d.uuid)
	if s := far(t, "domstate", d.uuid); s != "running" {
		t.Errorf("on the other host it is %s", s)
	}
	if s := d.state(); s != "shut off" {
		t.Errorf("here it is %s", s)
	}
}
