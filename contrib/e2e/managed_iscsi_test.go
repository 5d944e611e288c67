// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// onePath: without multipathd a volume is the device of one session.
func onePath(m machine) {
	link := m.attached("one")
	m.hasPathsOnly(1)
	m.refused(m.volume("attach", "one"), 0)
	m.writes(link, 0x3c, 1<<20)
	holder, err := os.Open(link)
	m.must(err)
	m.refused(m.volume("detach", "one"), 4, "in use by process")
	m.must(holder.Close())
	m.detached("one")
	m.reads(filepath.Join(luns, "one"), 0x3c, 1<<20)
}

func (m machine) hasPathsOnly(n int) {
	m.Helper()
	if all := m.paths(); len(all) != n {
		m.Errorf("paths: %v, want %d", all, n)
	}
}

// password: a target at an IPv6 address that asks for one. No program is told
// it on its command line or in its environment.
func password(m machine) {
	said := m.saying([]string{"iscsiadm", "multipath", "multipathd", "blockdev"}, func() {
		m.unattachable("wrong", 7, "check user and password")
		m.attached("locked")
		secrets(m) // with the record in its place
		m.detached("locked")
	})
	if !strings.Contains(said, "--login") || strings.Contains(said, "canary") {
		m.Errorf("programs were told:\n%s", said)
	}
}

// saying returns arguments and environment of the programs that ran while do did.
func (m machine) saying(programs []string, do func()) string {
	m.Helper()
	const log = "/run/said"
	m.write(log, "", 0o600)
	for _, name := range programs {
		path := "/usr/sbin/" + name
		if !exists(path) {
			path = "/usr/bin/" + name
		}
		m.run("mv", path, path+".real")
		defer m.run("mv", path+".real", path)
		m.write(path, "#!/bin/bash\n{ echo \"${0##*/} $*\"; env; } >>"+log+"\nexec -a \"${0##*/}\" "+path+".real \"$@\"\n", 0o755)
	}
	do()
	text, err := os.ReadFile(log)
	m.must(err)
	m.must(os.Remove(log))
	return string(text)
}

// twoPortals: one device over both, of the WWN that the target tells.
func twoPortals(m machine) {
	link := m.attached("twice")
	m.hasPaths("twice", 2)
	if to, err := os.Readlink(link); err != nil || to != "/dev/mapper/"+wwnOf("two") {
		m.Errorf("it is %s, %v", to, err)
	}
	// Another volume of the same target has the same sessions.
	m.attached("one")
	m.refused(m.volume("detach", "one"), 0)
	m.hasPaths("twice", 2)
	m.reads(link, pattern("two"), 0)
	m.detached("twice")
}

// discovered: the other portal is known from the target alone.
func discovered(m machine) {
	m.attached("one")
	m.hasPaths("one", 2)
	m.detached("one")
}

func farLUN(m machine) {
	m.attached("far")
	m.hasPaths("far", 2)
	for address := range m.paths() {
		if !strings.HasSuffix(address, ":300") {
			m.Errorf("path %s", address)
		}
	}
	m.detached("far")
}

// partitions: a guest has partitioned its disk, and the host makes devices of
// that, too. They keep nobody from detaching, unless somebody has one open.
func partitions(m machine) {
	table := make([]byte, 512)
	copy(table[446:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0}) // 8192 sectors from 4096 on
	copy(table[510:], []byte{0x55, 0xaa})
	f, err := os.OpenFile(filepath.Join(luns, "two"), os.O_WRONLY, 0)
	m.must(err)
	_, err = f.Write(table)
	m.must(errors.Join(err, f.Close()))
	attach := func() {
		if r := m.volume("attach", "twice"); r.code != 0 {
			m.Fatalf("attach: %s", r.output)
		}
		part := "/dev/mapper/" + wwnOf("two") + "-part1"
		m.within(part, func() bool { return exists(part) })
	}
	attach()
	m.detached("twice")
	attach()
	holder, err := os.Open("/dev/mapper/" + wwnOf("two") + "-part1")
	m.must(err)
	m.refused(m.volume("detach", "twice"), 4, "in use by process")
	m.must(holder.Close())
	m.writes(volumeLink("twice"), pattern("two"), 0)
	m.detached("twice")
}

// anotherVolume: the storage has given the number to another one meanwhile.
func anotherVolume(m machine) {
	m.shows(1, "one", "other")
	m.unattachable("one", 4, "another volume answers", wwnOf("one"), wwnOf("other"))
	m.shows(1, "other", "one")
	m.attached("one")
	m.detached("one")
}

// anotherVolumeBehind: the same, with devices that somebody left behind and that
// still tell what was there before.
func anotherVolumeBehind(m machine) {
	m.run("iscsiadm", "-m", "node", "-T", mainTarget, "-p", portal1, "--interface", "default", "--op", "new")
	m.run("iscsiadm", "-m", "node", "-T", mainTarget, "-p", portal1, "--login")
	m.within("its devices", func() bool { return len(m.paths()) >= len(lunsOf[mainTarget]) })
	for address := range m.paths() { // but for LUN 1
		if !strings.HasSuffix(address, ":1") {
			m.must(os.WriteFile("/sys/bus/scsi/devices/"+address+"/delete", []byte("1"), 0))
		}
	}
	m.shows(1, "one", "other")
	m.unattachable("one", 4, "another volume answers", wwnOf("one"), wwnOf("other"))
	m.shows(1, "other", "one")
	m.attached("one")
	m.detached("one")
}

// portalGoes: with one of two portals the volume is there, and goes as a whole.
func portalGoes(m machine) {
	link := m.attached("twice")
	reachable := m.unreachable("127.0.0.2")
	m.within("the loss of a path", func() bool {
		for _, state := range m.paths() {
			if state != "running" {
				return true
			}
		}
		return false
	})
	m.run("qemu-io", "-r", "-f", "raw", "-t", "none", "-c", "read -P "+decimal(pattern("two"))+" 0 64k", link)
	m.detached("twice")
	// One portal is enough to attach, too.
	m.attached("twice")
	m.hasPaths("twice", 1)
	m.detached("twice")
	reachable()
	m.attached("twice")
	m.hasPaths("twice", 2)
	m.detached("twice")
}

// targetGoes: no session works any more, and the volume can be detached, and
// attached when the target is back.
func targetGoes(id string) func(machine) {
	return func(m machine) {
		m.attached(id)
		m.enable("0")
		defer m.enable("1")
		m.within("the loss of all paths", func() bool {
			for _, state := range m.paths() {
				if state == "running" {
					return false
				}
			}
			return true
		})
		m.detached(id)
		m.refused(m.volume("attach", id), 1, "iscsiadm")
		m.noneLeft()
		m.enable("1")
		m.attached(id)
		m.detached(id)
	}
}

// pathsVanish: the kernel has lost the devices, and the database does not know.
func pathsVanish(m machine) {
	m.attached("twice")
	for address := range m.paths() {
		m.must(os.WriteFile("/sys/bus/scsi/devices/"+address+"/delete", []byte("1"), 0))
	}
	m.within("the end of the map", func() bool { return !exists("/dev/mapper/" + wwnOf("two")) })
	m.refused(m.volume("reconcile"), 10, "twice", "its device has vanished")
	m.detached("twice")
}
