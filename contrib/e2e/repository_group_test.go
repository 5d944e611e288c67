// SPDX-License-Identifier: Apache-2.0

//go:build e2e && long

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestRepositoryGroup has a storage repository on a real volume group, which this
// host alone writes.
func TestRepositoryGroup(t *testing.T) {
	host{install: "install", boots: []boot{{"group", repositoryGroup, inOrder}}}.run(t)
}

const (
	sanSource = "/srv/one.raw" // of no whole number of extents
	sanLarge  = 24<<20 + 3*512
)

func repositoryGroup(m machine) {
	m.install()
	m.run("cp", "--remove-destination", "diskhook.failpoints", "/usr/bin/diskhook")
	m.configure(map[string]string{"paths.roots": `["/srv"]`, "repository.deadline": `"2m"`})
	m.run("dd", "if=/dev/urandom", "of="+sanSource, "bs=512", fmt.Sprint("count=", sanLarge/512), "status=none")
	m.run("vgcreate", "-s", "1m", "san", "/dev/vdb")
	s := m.group()
	theirs := s.strangers()
	m.scenario("a group that nobody guards", func(m machine) { s.in(m).refusesGroup() })
	m.scenario("images", func(m machine) { s.in(m).groupImages() })
	m.scenario("a worker dies in a copy", func(m machine) { s.in(m).diesInCopy() })
	m.scenario("a worker dies in a merge", func(m machine) { s.in(m).diesInMerge() })
	m.scenario("all is given back", func(m machine) { s.in(m).groupEmptied() })
	if now := s.ofStrangers(); now != theirs {
		m.Errorf("what is not diskhook's was:\n%s\nand is:\n%s", theirs, now)
	}
}

// group is this host as one that has the group.
func (m machine) group() site {
	m.Helper()
	id, err := os.ReadFile("/etc/machine-id")
	m.must(err)
	return site{machine: m, id: strings.TrimSpace(string(id))}
}

// strangers makes volumes of others in the group, of which one looks like an image's.
func (s site) strangers() string {
	s.Helper()
	for letter, name := range strangers {
		s.run("lvcreate", "-y", "-q", "-Zn", "-Wn", "-n", name, "-L", "4m", "--addtag", "theirs", "san")
		s.run("qemu-io", "-f", "raw", "-t", "none", "-c", fmt.Sprintf("write -P %d 0 4M", letter+3), "/dev/san/"+name)
	}
	return s.ofStrangers()
}

var strangers = []string{"other", "7c9e6679-7425-40de-944b-e07fc1f90ae7.raw"}

// ofStrangers is all that is to be known of them, with every byte.
func (s site) ofStrangers() string {
	s.Helper()
	known := ""
	for _, name := range strangers {
		known += s.run("lvs", "--noheadings", "-o", "lv_name,lv_uuid,lv_size,lv_tags,lv_attr,seg_pe_ranges", "san/"+name) +
			" " + s.run("sha256sum", "/dev/san/"+name) + "\n"
	}
	return known
}

// ours are the volumes of images, or those that are active on this host.
func (s site) ours(active bool) []string {
	s.Helper()
	var names []string
	for line := range strings.Lines(s.run("lvs", "--noheadings", "-o", "lv_name,lv_attr", "san")) {
		fields := strings.Fields(line)
		if len(fields) == 2 && fields[0] != "dh_documents" && !slices.Contains(strangers, fields[0]) && (!active || fields[1][4] == 'a') {
			names = append(names, fields[0])
		}
	}
	return names
}

// idle wants no volume of an image to be active on this host.
func (s site) idle() {
	s.Helper()
	if active := s.ours(true); len(active) > 0 {
		s.Errorf("nobody uses %q, which are active", active)
	}
}

func (s site) refusesGroup() {
	create := func(set ...string) result {
		args := []string{"repo", "create", "--format", "clvm-1.2", "--set", "vg=san"}
		for _, pair := range set {
			args = append(args, "--set", pair)
		}
		return s.tries(append(args, "images")...)
	}
	s.refused(create(), 7, "nothing keeps two hosts from changing it at once", "--set writer="+s.id, "vgchange --lock-type sanlock san")
	other := strings.Repeat("0b", 16)
	s.refused(create("writer="+other), 7, "host "+other+" alone writes", "--set writer="+s.id)
	if made := s.ours(false); len(made) > 0 || exists("/dev/san/dh_documents") {
		s.Errorf("made: %q", made)
	}
	s.refused(create("writer="+s.id), 0)
	s.refused(create("writer="+s.id), 0) // the same again
}

// expect is a file with what an image should hold: source, and then what writes say.
func (s site) expect(name, source string, writes ...string) string {
	s.Helper()
	path := "/srv/" + name
	s.run("cp", source, path)
	for _, w := range writes {
		s.run("qemu-io", "-f", "raw", "-c", w, path)
	}
	return path
}

// guest writes to a disk as a VM would.
func (s site) guest(ref string, writes ...string) {
	s.Helper()
	path := s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", ref)
	name := path[strings.LastIndex(path, "/")+1:]
	_, kind, _ := strings.Cut(name, ".")
	if !slices.Contains(s.ours(true), name) {
		s.Errorf("%s is prepared and not active", name)
	}
	for _, w := range writes {
		s.run("qemu-io", "-f", kind, "-t", "none", "-c", w, path)
	}
	s.refused(s.tries("image", "remove", ref), 4, "it is in use: by vm")
	s.does("image", "release", "--holder", "vm", ref)
}

// made runs a verb to its end, and returns the image that it made.
func (s site) made(verb string, args ...string) string {
	s.Helper()
	return "images/" + s.does(append([]string{"image", verb, "--wait"}, args...)...)
}

func imageID(ref string) string { return ref[strings.Index(ref, "/")+1:] }

func (s site) groupImages() {
	base := s.made("import", "images", sanSource)
	s.holds(base, sanSource)
	blank := s.made("create", "--size", "8M", "images")
	s.run("truncate", "-s", "8M", "/srv/zero.raw")
	s.holds(blank, "/srv/zero.raw") // on a disk that was full of 0xaa

	disk := s.made("create", "--base", imageID(base), "images")
	s.guest(disk, "write -P 7 1M 64k", "write -P 8 20M 1M")
	first := s.expect("first.raw", sanSource, "write -P 7 1M 64k", "write -P 8 20M 1M")
	snapshot := s.made("snapshot", disk)
	s.guest(disk, "write -P 9 4M 512k")
	second := s.expect("second.raw", first, "write -P 9 4M 512k")
	s.holds(base, sanSource)
	s.holds(snapshot, first)
	s.holds(disk, second)
	copied := s.made("copy", disk, "images")
	s.holds(copied, second)

	s.does("image", "resize", "--wait", copied, "40M")
	grown := s.expect("grown.raw", second)
	s.run("truncate", "-s", "40M", grown)
	s.holds(copied, grown)
	s.idle()

	// Two readers of what lies below a disk: it goes when both have gone.
	for _, holder := range []string{"one", "two"} {
		s.does("image", "prepare", "-o", "name", "--holder", holder, snapshot)
	}
	s.does("image", "release", "--holder", "one", snapshot)
	if active := s.ours(true); len(active) != 2 {
		s.Errorf("a snapshot over another is in use, and active are %q", active)
	}
	s.does("image", "release", "--holder", "two", snapshot)
	s.idle()

	s.does("image", "remove", snapshot)
	s.refused(s.tries("repo", "check", "images"), 8, "merge")
	s.does("repo", "fix", "--all", "--wait", "images")
	s.refused(s.tries("repo", "check", "--deep", "images"), 0)
	s.holds(disk, second)
	s.holds(base, sanSource)
	s.idle()
	for _, ref := range []string{disk, copied, blank, base} {
		s.does("image", "remove", ref)
	}
	s.within("their space is free", func() bool { return s.tries("repo", "check", "images").code == 0 })
}

// dying has the work on images die at failpoints; alive lets it be.
func (m machine) dying(points ...string) {
	m.Helper()
	m.write(imageFailpoints, "[Service]\nEnvironment=DISKHOOK_FAILPOINT="+strings.Join(points, "=kill,")+"=kill\n", 0o644)
	m.run("systemctl", "daemon-reload")
}

func (m machine) alive() {
	m.Helper()
	m.run("rm", imageFailpoints)
	m.run("systemctl", "daemon-reload")
}

const imageFailpoints = "/run/systemd/system/diskhook-image-.service.d/failpoint.conf"

// dies waits until nobody works on an image of which something is left to be done.
func (s site) dies(ref string) {
	s.Helper()
	s.within("its worker has died", func() bool {
		state := s.try("", "systemctl", "show", "-P", "SubState", "diskhook-image-"+imageID(ref)).output
		st := s.status(ref)
		if !st.Open {
			s.Fatal("the work was done before anything could happen to it")
		}
		return !st.Running && strings.TrimSpace(state) != "running"
	})
}

func (s site) diesInCopy() {
	s.dying("transfer.chunk")
	ref := "images/" + s.does("image", "import", "--kind", "disk", "images", sanSource)
	s.dies(ref)
	s.alive()
	if st := s.status(ref); st.State != "broken" {
		s.Errorf("half an image is %+v", st)
	}
	s.refused(s.tries("image", "prepare", "--holder", "vm", ref), 7)
	s.does("image", "resume", "--wait", ref)
	if st := s.status(ref); st.State != "optimized" {
		s.Errorf("in the end it is %+v", st)
	}
	s.holds(ref, sanSource)
	s.idle()
}

func (s site) diesInMerge() {
	base := s.made("import", "images", sanSource)
	disk := s.made("create", "--base", imageID(base), "images")
	s.guest(disk, "write -P 5 1M 64k")
	middle := s.made("snapshot", disk)
	s.guest(disk, "write -P 6 2M 64k")
	now := s.expect("merged.raw", sanSource, "write -P 5 1M 64k", "write -P 6 2M 64k")
	s.does("image", "remove", middle)
	s.dying("repository.merge.header", "repository.merge.sunk")
	s.does("repo", "fix", "--all", "images")
	s.dies(disk)
	s.alive()
	s.does("image", "resume", "--wait", disk)
	s.holds(disk, now)
	s.holds(base, sanSource)
	s.does("repo", "fix", "--all", "--wait", "images")
	s.holds(disk, now)
	s.idle()
}

// groupEmptied leaves nothing of the images.
func (s site) groupEmptied() {
	for ref := range strings.FieldsSeq(s.does("image", "list", "-o", "name", "images")) {
		s.does("image", "remove", ref)
	}
	s.within("their space is free", func() bool { return s.tries("repo", "check", "images").code == 0 })
	if left := s.ours(false); len(left) > 0 {
		s.Errorf("left: %q", left)
	}
}
