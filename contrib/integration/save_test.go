// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestManagedSave: the guest goes on with the disk that it left, and until it
// did nothing may take the disk from it.
func TestManagedSave(t *testing.T) {
	d := filled(t, "managed")
	d.start()
	d.boots(2)
	run(t, "virsh", "-q", "managedsave", d.uuid)
	d.linked(false)
	holds(t, d.copy(), after(diskImage(false), 2))

	definition, state := d.dumped(), digest(t, "/var/lib/diskhook")
	for _, args := range [][]string{
		{"domain", "revert", "--discard-guest-data", "managed"},
		{"local", "recreate", "--discard-guest-data", "managed", "vda"},
		{"local", "remove", "--discard-guest-data", "managed", "vda"},
	} {
		says(t, diskhook(t, 4, args...), "domain managed", "managed save", "virsh managedsave-remove managed")
	}
	if d.dumped() != definition || digest(t, "/var/lib/diskhook") != state {
		t.Error("a refused verb changed something")
	}

	d.start()
	if s := d.state(); s != "running" {
		t.Errorf("restored, it is %s", s)
	}
	d.linked(true)
	// A guest that had booted would have counted, and have said so.
	if said := content(t, d.serial()); said != "" && said != "2" {
		t.Errorf("the guest says %q: it was not restored", said)
	}
	holds(t, d.copy(), after(diskImage(false), 2))
	d.destroy()
}

// TestSaveAndRestore with a file.
func TestSaveAndRestore(t *testing.T) {
	d := filled(t, "saved")
	file := filepath.Join(d.dir, "memory")
	d.start()
	d.boots(2)
	run(t, "virsh", "-q", "save", d.uuid, file)
	d.linked(false)

	// The memory must not meet another disk.
	back := moved(t, d.copy())
	d.vetoed([]string{"restore", file}, "domain saved: disk vda", "is gone")
	d.linked(false)
	if !exists(file) {
		t.Fatal("the refused restore took the file")
	}
	back()
	run(t, "virsh", "-q", "restore", file)
	if s := d.state(); s != "running" {
		t.Errorf("restored, it is %s", s)
	}
	d.linked(true)
	holds(t, d.copy(), after(diskImage(false), 2))
}

// TestDiscard: a copy is given up only after a stop that libvirt says was
// meant, which it does since 10.5. Before, apply refuses the binding, and one
// that is there anyway keeps the copy.
func TestDiscard(t *testing.T) {
	tells := libvirtVersion(t) >= 10_005
	free := bootable(t, "free-discard")
	definition := free.dumped()
	if tells {
		diskhook(t, 0, "domain", "apply", "--local", "vda=dir,on-stop=discard", "free-discard")
	} else {
		said := diskhook(t, 7, "domain", "apply", "--local", "vda=dir,on-stop=discard", "free-discard")
		says(t, said, "domain free-discard", "on-stop=discard needs libvirt 10.5", "on-stop=keep")
		if free.dumped() != definition || free.receipt() != nil || exists(free.copy()) {
			t.Error("the refused apply changed something")
		}
	}

	d := newDomain(t, "discard")
	writeImage(t, d.image(), diskImage(false))
	d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
	d.metadata = strings.Replace(d.metadata, "on-stop='keep'", "on-stop='discard'", 1)
	d.define()
	d.start()
	d.boots(1)
	run(t, "virsh", "-q", "managedsave", d.uuid)
	holds(t, d.copy(), after(diskImage(false), 1))
	d.start()
	d.destroy()
	if kept := exists(d.copy()); kept == tells {
		t.Errorf("libvirt tells why a domain stopped: %v; the copy is kept: %v", tells, kept)
	}
	holds(t, d.image(), diskImage(false))
}

// libvirtVersion is that of the daemon: major times thousand and minor.
func libvirtVersion(t *testing.T) int {
	t.Helper()
	for line := range strings.SplitSeq(run(t, "virsh", "version", "--daemon"), "\n") {
		if version, is := strings.CutPrefix(line, "Running against daemon: "); is {
			parts := strings.Split(strings.TrimSpace(version), ".")
			major, err := strconv.Atoi(parts[0])
			if err != nil {
				t.Fatal(err)
			}
			minor, err := strconv.Atoi(parts[1])
			if err != nil {
				t.Fatal(err)
			}
			return major*1000 + minor
		}
	}
	t.Fatal("virsh does not tell the daemon's version")
	return 0
}

// TestOwner: libvirt gives the copy to QEMU's user through the stable path and
// takes it back. If it was told not to, the hook does it.
func TestOwner(t *testing.T) {
	qemu := run(t, "id", "-u", "libvirt-qemu")
	owner := func(path string) string { t.Helper(); return run(t, "stat", "-c", "%u", path) }
	d := filled(t, "owner")
	if is := owner(d.copy()); is != "0" {
		t.Errorf("the copy of a stopped domain is of user %s", is)
	}
	d.start()
	d.boots(2)
	if is := owner(d.copy()); is != qemu {
		t.Errorf("the copy of a running domain is of user %s, QEMU is %s", is, qemu)
	}
	d.destroy()
	if is := owner(d.copy()); is != "0" {
		t.Errorf("the copy of a stopped domain is of user %s", is)
	}

	kept := startable(t, "unlabelled")
	kept.disks = strings.Replace(kept.disks, "'/><target", "'><seclabel model='dac' relabel='no'/></source><target", 1)
	kept.define()
	kept.start()
	kept.boots(1)
	if is := owner(kept.copy()); is != qemu {
		t.Errorf("the unlabelled copy is of user %s, QEMU is %s", is, qemu)
	}
	if is := owner(kept.image()); is != "0" {
		t.Errorf("the source was given to user %s", is)
	}
	if st, err := os.Stat(kept.copy()); err != nil || st.Mode().Perm()&0o022 != 0 {
		t.Errorf("others may write to the copy: %v %v", st.Mode(), err)
	}
}
