// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
)

// guestGroup: a guest has a volume group on its volume. The host's LVM leaves it
// alone when the volume comes, and would not without the rule.
func guestGroup(m machine) {
	const rule = "/usr/lib/udev/rules.d/62-diskhook-volumes.rules"
	file := filepath.Join(luns, "far")
	m.run("cp", file, file+".before")
	link := m.attached("far")
	device, err := os.Readlink(link) // LVM takes no other directory than /dev
	m.must(err)
	m.run("pvcreate", "-y", "-ff", device)
	m.run("vgcreate", "guestgroup", device)
	m.run("lvcreate", "-y", "-l", "1", "-n", "root", "guestgroup")
	m.run("vgchange", "-an", "guestgroup")
	m.detached("far")

	properties := func() string {
		if r := m.volume("attach", "far"); r.code != 0 {
			m.Fatalf("attach: %s", r.output)
		}
		m.run("udevadm", "settle")
		to, err := filepath.EvalSymlinks(link)
		m.must(err)
		return "\n" + m.run("udevadm", "info", "-q", "property", "-n", to) + "\n"
	}
	got := properties()
	if !strings.Contains(got, "\nDISKHOOK_VOLUME=far\n") || strings.Contains(got, "\nID_FS_TYPE=") || strings.Contains(got, "\nLVM_VG_NAME_COMPLETE=") {
		m.Errorf("udev has of the volume: %s", got)
	}
	if exists("/dev/guestgroup/root") {
		m.Error("the host has activated the guest's volume group")
	}
	m.detached("far")

	m.run("mv", rule, "/run/rule")
	m.run("udevadm", "control", "--reload")
	if got := properties(); !strings.Contains(got, "\nID_FS_TYPE=LVM2_member\n") {
		m.Errorf("without the rule udev has: %s", got)
	}
	m.within("the group is active without the rule", func() bool { return exists("/dev/guestgroup/root") })
	m.refused(m.volume("detach", "far"), 4, "in use")
	m.run("vgchange", "-an", "guestgroup")
	m.detached("far")
	m.run("mv", "/run/rule", rule)
	m.run("udevadm", "control", "--reload")
	m.run("cp", file+".before", file)
	m.run("rm", file+".before")
}

// grown: the storage enlarges a volume that is attached. LIO's files do not grow,
// so that a larger one of the same identity takes the place of the first.
func grown(m machine) {
	m.attached("twice")
	m.hasPaths("twice", 2)
	size := func() string { return m.run("blockdev", "--getsize64", volumeLink("twice")) }
	was := size()
	file, larger := filepath.Join(luns, "two"), filepath.Join(configfs, "target/core/fileio_0/larger")
	m.run("truncate", "-s", "+4M", file)
	now := m.run("stat", "-c", "%s", file)
	m.run("mkdir", larger)
	for name, text := range map[string]string{"control": "fd_dev_name=" + file + ",fd_dev_size=" + now, "wwn/vpd_unit_serial": backing["two"]} {
		m.must(os.WriteFile(filepath.Join(larger, name), []byte(text+"\n"), 0))
	}
	m.must(os.WriteFile(filepath.Join(larger, "enable"), []byte("1\n"), 0))
	m.shows(2, "two", "larger")
	m.refused(m.volume("rescan", "twice"), 0, now+" bytes, was "+was)
	if seen := size(); seen != now {
		m.Errorf("the volume has %s bytes, and the host sees %s", now, seen)
	}
	m.reads(volumeLink("twice"), pattern("two"), 0)
	m.detached("twice")
	m.shows(2, "larger", "two")
	m.run("rmdir", larger)
	m.run("truncate", "-s", was, file)
	m.unattachable("twice", 4, "it had "+now+" bytes, and has "+was)
	m.refused(m.volume("undefine", "twice"), 0)
	m.defineAll()
}
