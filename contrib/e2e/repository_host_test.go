// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRepositoryHost is two hosts in one, with a machine id and a mount of one
// NFS server's export each, that have a storage repository there.
func TestRepositoryHost(t *testing.T) {
	host{
		install: "install",
		images:  []chain{{name: "one", seed: 12}},
		boots:   []boot{{"repositories", repositories, inOrder}},
	}.run(t)
}

// site is one of the hosts: its mount of the export, and its diskhook.
type site struct {
	machine
	id    string // of the machine
	root  string // of diskhook's files
	mount string
}

func repositories(m machine) {
	m.install()
	m.must(os.WriteFile("/proc/sys/fs/leases-enable", []byte("0"), 0))
	m.run("systemctl", "start", "nfs-server")
	m.run("exportfs", "-o", "rw,insecure,fsid=0,no_root_squash", "127.0.0.1:"+export)
	a, b := m.site("a", "1111"), m.site("b", "2222")
	m.scenario("mounts that are refused", func(m machine) { a.in(m).refusesMounts() })
	a.mounts("lookupcache=pos")
	b.mounts("lookupcache=pos")
	m.scenario("two hosts", func(m machine) { twoHosts(a.in(m), b.in(m)) })
	m.scenario("a worker dies", func(m machine) { workerDies(a.in(m), b.in(m)) })
	m.scenario("the server stops", func(m machine) { repositoryAway(a.in(m), b.in(m)) })
}

func (m machine) site(name, id string) site {
	m.Helper()
	s := site{m, strings.Repeat(id, 8), "/srv/" + name, "/mnt/" + name}
	m.write(s.root+"/etc/machine-id", s.id+"\n", 0o644)
	m.write(s.root+"/etc/diskhook/diskhook.toml", "[paths]\nroots = [\"/srv\", \"/mnt\"]\n[repository]\ndeadline = \"20s\"\n", 0o644)
	m.run("mkdir", "-p", s.mount)
	return s
}

// in is the site in a scenario.
func (s site) in(m machine) site {
	s.machine = m
	return s
}

// mounts mounts the export apart from other mounts of it: the host shares
// neither caches nor locks with itself.
func (s site) mounts(options string) {
	s.Helper()
	s.run("mount", "-t", "nfs4", "-o", "nosharecache,timeo=50,retrans=1,"+options, "127.0.0.1:/", s.mount)
	s.finally("umount", "-f", "-l", s.mount)
}

func (s site) tries(args ...string) result {
	s.Helper()
	return s.try("", "env", append([]string{"DISKHOOK_ROOT=" + s.root, "diskhook"}, args...)...)
}

// does wants success, and returns what was printed on standard output.
func (s site) does(args ...string) string {
	s.Helper()
	cmd := exec.CommandContext(s.Context(), "diskhook", args...)
	cmd.Env = append(os.Environ(), "DISKHOOK_ROOT="+s.root)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		s.Fatalf("diskhook %q: %v: %s", args, err, exit.Stderr)
	}
	s.must(err)
	return strings.TrimSpace(string(out))
}

// status is how an image is.
func (s site) status(ref string) (st struct {
	State   string
	Open    bool
	Running bool
	HostID  string
	Percent int `json:"percent_complete"`
}) {
	s.Helper()
	s.must(json.Unmarshal([]byte(s.does("image", "status", "-o", "json", ref)), &st))
	return st
}

// holds compares an image with a file.
func (s site) holds(ref, file string) {
	s.Helper()
	path := s.does("image", "prepare", "-o", "name", "--holder", "compare", ref)
	s.run("qemu-img", "compare", "-U", path, file)
	s.does("image", "release", "--holder", "compare", ref)
}

func (s site) refusesMounts() {
	dir := filepath.Join(s.mount, "repo")
	s.refused(s.tries("repo", "create", "--format", "nfs-3.4", "--set", "path="+s.root+"/repo", "r"), 7, "is not on NFS, but on ext4")
	for options, word := range map[string]string{"lookupcache=all": "lookupcache=pos"} {
		s.run("mount", "-t", "nfs4", "-o", "timeo=50,retrans=1,"+options, "127.0.0.1:/", s.mount)
		s.refused(s.tries("repo", "create", "--format", "nfs-3.4", "--set", "path="+dir, "r"), 7, "would not see what another one made", word)
		s.refused(s.tries("repo", "create", "--format", "localfs-1.0", "--set", "path="+dir, "r"), 7, "other hosts may have mounted")
		s.run("umount", s.mount)
	}
	if exists(dir) {
		s.Error("something was made")
	}
}

// twoHosts: what one makes the other has at once, and what one uses the other
// leaves alone.
func twoHosts(a, b site) {
	a.does("repo", "create", "--format", "nfs-3.4", "--set", "path=/mnt/a/repo", "images")
	a.refused(b.tries("image", "list", "images"), 3, "no such repository is connected")
	b.does("repo", "connect", "--format", "nfs-3.4", "--set", "path=/mnt/b/repo", "images")
	source := filepath.Join(export, "one/base.qcow2")
	snapshot := a.does("image", "import", "--wait", "-f", "qcow2", "images", source)
	ref := "images/" + snapshot
	b.holds(ref, source)

	disk := "images/" + b.does("image", "create", "--wait", "--base", snapshot, "images")
	path := a.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	a.run("qemu-io", "-c", "write -P 7 1M 64k", path)
	a.refused(b.tries("image", "prepare", "--write", "--holder", "vm", disk), 4, "it is in use", "on host "+strings.Repeat("1111", 8))
	a.refused(b.tries("image", "remove", disk), 4, "it is in use")
	a.does("image", "release", "--holder", "vm", disk)
	taken := b.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	if out := b.run("qemu-io", "-r", "-c", "read -P 7 1M 64k", taken); strings.Contains(out, "failed") {
		b.Errorf("not what the other host wrote: %s", out)
	}
	b.does("image", "release", "--holder", "vm", disk)
	b.does("image", "remove", disk)
	a.refused(a.tries("image", "show", disk), 3, "no such image")
	a.within("its space is freed", func() bool { return a.tries("repo", "check", "images").code == 0 })
}

// large is a file whose copy takes seconds in the guest.
func (s site) large() string {
	s.Helper()
	const file = "/srv/large.raw"
	if !exists(file) {
		s.run("dd", "if=/dev/urandom", "of="+file, "bs=1M", "count=96", "status=none")
	}
	return file
}

// begun is an image whose content is being copied by the site.
func (s site) begun() (ref, unit string) {
	s.Helper()
	id := s.does("image", "import", "--kind", "disk", "images", s.large())
	ref = "images/" + id
	s.within("the copy is at work", func() bool {
		st := s.status(ref)
		if !st.Open {
			s.Fatal("the copy was done before anything could happen to it")
		}
		return st.Running && st.Percent > 0
	})
	return ref, "diskhook-image-" + id + ".service"
}

// workerDies: the process that copies is killed; the other host, or the same one,
// brings the copy to its end.
func workerDies(a, b site) {
	ref, unit := a.begun()
	a.run("systemctl", "kill", "-s", "KILL", unit)
	b.within("it is seen to be dead", func() bool { return !b.status(ref).Running })
	if st := b.status(ref); st.State != "broken" || !st.Open {
		b.Errorf("half an image is %+v", st)
	}
	b.does("image", "resume", "--wait", ref)
	st := a.status(ref)
	if st.State != "optimized" || st.HostID != b.id {
		a.Errorf("in the end it is %+v", st)
	}
	a.holds(ref, a.large())
	a.does("image", "remove", ref)
}

// repositoryAway: the server stops in the middle of a copy. Its repository is
// said not to answer, another goes on, and once it is back so does the copy.
func repositoryAway(a, b site) {
	a.does("repo", "create", "--set", "path=/srv/a/local", "local")
	ref, _ := a.begun()
	a.run("rpc.nfsd", "0")
	for _, args := range [][]string{{"image", "list", "images"}, {"repo", "check", "images"}, {"image", "create", "--size", "1M", "images"}} {
		r := a.tries(args...)
		a.refused(r, 5, "repository images", "does not answer")
		a.answered(strings.Join(args, " "), r)
	}
	a.does("image", "create", "--wait", "--size", "1M", "local")
	a.does("repo", "list")
	r := b.tries("repo", "disconnect", "--force", "images")
	b.refused(r, 0)
	b.answered("disconnect", r)
	a.run("rpc.nfsd", "8")
	a.within("the copy goes on, or its worker has gone", func() bool {
		r := a.tries("image", "status", "-o", "json", ref)
		if r.code != 0 {
			return false
		}
		st := a.status(ref)
		return !st.Open || !st.Running
	})
	a.does("image", "resume", "--wait", ref)
	a.holds(ref, a.large())
}
