// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestSharedRepositoryGroup has two hosts on one LUN use a storage repository on a
// volume group that lvmlockd locks with sanlock's leases there, until its documents need more
// room. In the end one dies.
func TestSharedRepositoryGroup(t *testing.T) {
	lab{
		hosts:   map[string][]labBoot{"alpha": {{"alpha-group", groupAlpha, powerCut}}, "beta": {{"beta-group", groupBeta, powerCut}}},
		notices: []string{"group made", "in use", "beta was refused", "given back", "beta has written", "alpha dies"},
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

var (
	byAlpha = span{77, 1 << 20, 64 << 10}
	byBeta  = span{78, 2 << 20, 64 << 10}
)

func (s site) groupFiles() {
	s.Helper()
	s.noise(groupBase, 4<<20)
	s.expect("first", groupBase, byAlpha)
	s.expect("second", groupBase, byAlpha, byBeta)
}

func groupAlpha(m labMachine) {
	m.joins(1)
	m.run("vgcreate", "-q", "-s", "1m", "--shared", "san", "/dev/vdb")
	s := m.numbered(1)
	s.groupFiles()
	s.does("repo", "create", "--format", "clvm-1.2", "--set", "vg=san", "--set", "documents=16", "images")
	base := s.made("import", "images", groupBase)
	disk := s.made("create", "--base", imageID(base), "images")
	m.tell("group made", base+" "+disk)

	path := s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	s.io(path, byAlpha)
	m.tell("in use", path)
	m.await("beta was refused")
	s.does("image", "release", "--holder", "vm", disk)
	s.idle()
	m.tell("given back", "")
	// Before the last of these the volume of documents is full, and another one is added.
	var spare string
	for range 8 {
		spare = s.made("create", "--base", imageID(base), "images")
	}
	s.active("dh_documents_1")
	m.await("beta has written")
	s.holds(disk, "/srv/second")

	// It dies, with the disk in use and in the middle of a copy.
	s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	m.run("systemctl", "set-environment", "DISKHOOK_FAILPOINT=transfer.chunk=sleep:1h", "DISKHOOK_FAILPOINT_LOG=/run/passed")
	halved := "images/" + s.does("image", "copy", spare, "images")
	s.within("the copy is in the middle", func() bool { return s.passed("transfer.chunk") })
	m.tell("alpha dies", halved)
	m.cutPower()
}

// active wants a volume of the group to be active on this host.
func (s site) active(volume string) {
	s.Helper()
	if attr := strings.TrimSpace(s.run("lvs", "--noheadings", "-o", "lv_attr", "san/"+volume)); len(attr) < 5 || attr[4] != 'a' {
		s.Errorf("lv san/%s: its attributes are %q", volume, attr)
	}
}

// passed says that a worker has come to a failpoint.
func (s site) passed(point string) bool {
	text, err := os.ReadFile("/run/passed")
	return err == nil && strings.Contains(string(text), point+"\n")
}

func groupBeta(m labMachine) {
	m.joins(2)
	s := m.numbered(2)
	s.groupFiles()
	refs := strings.Fields(m.await("group made"))
	base, disk := refs[0], refs[1]
	// LVM does not wait for udev to make the node of the volume with the leases.
	m.within("the group's locks are there", func() bool { return m.try("", "vgchange", "-q", "--lock-start", "san").code == 0 })
	s.does("repo", "connect", "--format", "clvm-1.2", "--set", "vg=san", "images")

	// What lies below the disk both have; the disk only one has, for LVM as well.
	volume := m.await("in use")
	volume = volume[strings.LastIndex(volume, "/")+1:]
	s.holds(base, groupBase)
	s.refused(s.tries("image", "prepare", "--holder", "vm", disk), 4, "it is in use: by vm on host "+machineID(0))
	for _, how := range []string{"-aey", "-asy"} {
		s.refused(s.try("", "lvchange", how, "-K", "san/"+volume), 5, "LV locked by other host")
	}
	m.tell("beta was refused", "")
	m.await("given back")
	s.holds(disk, "/srv/first")
	s.guest(disk, byBeta)
	s.idle()
	m.tell("beta has written", "")

	halved := m.await("alpha dies")
	m.await(ended("alpha-group"))
	// Its locks are taken over at once, and its copy made anew; its volumes are its own
	// until its lease has ended.
	left := s.ours(false)
	s.does("image", "resume", "--wait", halved)
	s.holds(halved, groupBase)
	s.active("dh_documents_1")
	s.refused(s.tries("image", "prepare", "--write", "--holder", "vm", disk), 4, "it is in use: by vm on host "+machineID(0))
	dead := []string{"image", "prepare", "-o", "name", "--write", "--dead", machineID(0), "--holder", "vm", disk}
	s.within("alpha is dead to sanlock, too", func() bool {
		r := s.tries(dead...)
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
