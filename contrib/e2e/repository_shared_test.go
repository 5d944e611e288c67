// SPDX-License-Identifier: Apache-2.0

//go:build e2e && long

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestSharedRepositoryGroup has two hosts on one LUN use a storage repository on a
// volume group that lvmlockd locks with sanlock's leases there. In the end one dies.
func TestSharedRepositoryGroup(t *testing.T) {
	lab{
		hosts:   map[string][]labBoot{"alpha": {{"alpha-group", groupAlpha, powerCut}}, "beta": {{"beta-group", groupBeta, powerCut}}},
		notices: []string{"group made", "in use", "beta was refused", "given back", "beta has written", "a worker died", "copied", "alpha dies"},
	}.run(t)
}

// sanlockTimeout is that of sanlock's I/O, in seconds. A host is dead to the others once
// its lease was not renewed for eight times that and a minute more.
const sanlockTimeout = 4

// joins starts the lock managers, as the host of that number.
func (m labMachine) joins(number int) {
	m.Helper()
	m.run("sed", "-i", "s/.*use_lvmlockd = .*/use_lvmlockd = 1/", "/etc/lvm/lvm.conf")
	m.write("/etc/lvm/lvmlocal.conf", fmt.Sprintf("local {\n host_id = %d\n}\n", number), 0o644)
	m.write("/run/systemd/system/lvmlockd.service.d/timeout.conf",
		fmt.Sprintf("[Service]\nExecStart=\nExecStart=/sbin/lvmlockd --foreground --sanlock-timeout %d\n", sanlockTimeout), 0o644)
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "start", "sanlock", "lvmlockd") // without a watchdog: Debian's default
}

// numbered says diskhook the host's number, and lets its workers have failpoints.
func (m labMachine) numbered(number int) site {
	m.Helper()
	m.configure(map[string]string{"paths.roots": `["/srv"]`, "repository.deadline": `"2m"`, "repository.host_id": fmt.Sprint(number)})
	m.run("cp", "--remove-destination", "diskhook.failpoints", "/usr/bin/diskhook")
	return m.group()
}

// What the images hold, which each host makes for itself.
const groupBase = "/srv/base.raw"

func (s site) groupFiles() {
	s.Helper()
	s.run("mkdir", "-p", "/srv")
	s.run("qemu-img", "create", "-q", "-f", "raw", groupBase, "16M")
	for i := range 16 {
		s.run("qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %dM 1M", i+1, i), groupBase)
	}
	s.expect("first", groupBase, "write -P 77 1M 64k")
	s.expect("second", "/srv/first", "write -P 78 2M 64k")
}

func groupAlpha(m labMachine) {
	m.joins(1)
	m.run("vgcreate", "-s", "1m", "--shared", "san", "/dev/vdb")
	s := m.group()
	create := []string{"repo", "create", "--format", "clvm-1.2", "--set", "vg=san"}
	s.refused(s.tries(append(create, "images")...), 7, "it is shared, and this host has no number", "[repository] host_id")
	s.refused(s.tries(append(create, "--set", "writer="+s.id, "images")...), 2, "kept apart by sanlock", "leave --set writer out")
	s = m.numbered(1)
	theirs := s.strangers()
	s.refused(s.tries(append(create, "images")...), 0)
	s.groupFiles()
	base := s.made("import", "images", groupBase)
	disk := s.made("create", "--base", imageID(base), "images")
	m.tell("group made", base+" "+disk)

	path := s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	s.run("qemu-io", "-f", "qcow2", "-t", "none", "-c", "write -P 77 1M 64k", path)
	m.tell("in use", path)
	m.await("beta was refused")
	s.does("image", "release", "--holder", "vm", disk)
	s.idle()
	m.tell("given back", "")
	m.await("beta has written")
	s.holds(disk, "/srv/second")

	// A worker dies and its host lives: what it had open is given back.
	m.dying("transfer.chunk")
	copied := "images/" + s.does("image", "copy", disk, "images")
	s.dies(copied)
	s.within("what it had open is given back", func() bool { return len(s.ours(true)) == 0 })
	m.tell("a worker died", copied)
	m.await("copied")
	s.holds(copied, "/srv/second")
	if now := s.ofStrangers(); now != theirs {
		m.Errorf("what is not diskhook's was:\n%s\nand is:\n%s", theirs, now)
	}

	// The host dies, with a disk in use and in the middle of a copy.
	s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	m.write(imageFailpoints, "[Service]\nEnvironment=DISKHOOK_FAILPOINT=transfer.chunk=sleep:1h DISKHOOK_FAILPOINT_LOG=/run/passed\n", 0o644)
	m.run("systemctl", "daemon-reload")
	halved := "images/" + s.does("image", "copy", copied, "images")
	s.within("the copy is in the middle", func() bool { return s.tries("image", "status", halved).code == 0 && s.passed("transfer.chunk") })
	m.tell("alpha dies", halved)
	m.cutPower()
}

// passed says that a worker has come to a failpoint.
func (s site) passed(point string) bool {
	return strings.Contains(s.try("", "cat", "/run/passed").output, point+"\n")
}

func groupBeta(m labMachine) {
	m.joins(2)
	refs := strings.Fields(m.await("group made"))
	base, disk := refs[0], refs[1]
	m.run("vgchange", "--lock-start", "san")
	s := m.numbered(2)
	s.groupFiles()
	s.does("repo", "connect", "--format", "clvm-1.2", "--set", "vg=san", "images")

	// What lies below the disk both have; the disk only one has, for LVM as well.
	volume := m.await("in use")
	volume = volume[strings.LastIndex(volume, "/")+1:]
	s.holds(base, groupBase)
	s.refused(s.tries("image", "prepare", "--holder", "vm", disk), 4, "it is in use: by vm on host", "0a")
	for _, how := range []string{"-aey", "-asy"} {
		s.refused(s.try("", "lvchange", how, "-K", "san/"+volume), 5, "LV locked by other host")
	}
	m.tell("beta was refused", "")
	m.await("given back")
	s.holds(disk, "/srv/first")
	s.guest(disk, "write -P 78 2M 64k")
	s.made("snapshot", disk)
	s.idle()
	m.tell("beta has written", "")

	copied := m.await("a worker died")
	s.does("image", "resume", "--wait", copied)
	s.holds(copied, "/srv/second")
	s.does("repo", "fix", "--all", "--wait", "images")
	s.refused(s.tries("repo", "check", "images"), 0)
	m.tell("copied", "")

	halved := m.await("alpha dies")
	m.await(ended("alpha-group"))
	// Its locks are taken over at once, and its copy made anew; its volumes are its own
	// until its lease has ended.
	left := s.ours(false)
	s.does("image", "resume", "--wait", halved)
	s.holds(halved, "/srv/second")
	s.refused(s.tries("image", "prepare", "--write", "--holder", "vm", disk), 4, "it is in use: by vm on host", "0a")
	force := []string{"image", "prepare", "-o", "name", "--write", "--force", "--holder", "vm", disk}
	s.within("alpha is dead to sanlock, too", func() bool {
		r := s.tries(force...)
		if r.code != 0 {
			s.refused(r, 4, "another host has it open")
		}
		return r.code == 0
	})
	s.does("image", "release", "--holder", "vm", disk)
	s.holds(disk, "/srv/second")
	s.does("repo", "fix", "--all", "--wait", "images")
	s.refused(s.tries("repo", "check", "--deep", "images"), 0)
	if now := s.ours(false); len(now) >= len(left)+1 {
		s.Errorf("volumes were %q and are %q: what alpha was making is left", left, now)
	}
	s.idle()
	m.cutPower()
}
