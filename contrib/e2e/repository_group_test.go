// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
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
	sanSource = "/srv/one.raw"
	sanLarge  = 6<<20 + 3*512 // of no whole number of extents
)

func repositoryGroup(m machine) {
	m.install()
	m.run("cp", "--remove-destination", "diskhook.failpoints", "/usr/bin/diskhook")
	m.configure(map[string]string{"paths.roots": `["/srv"]`, "repository.deadline": `"2m"`})
	m.noise(sanSource, sanLarge)
	m.run("vgcreate", "-q", "-s", "1m", "san", "/dev/vdb")
	s := m.group()
	theirs := s.strangers()
	m.scenario("a group that nobody guards", func(m machine) { s.in(m).refusesGroup() })
	base, disk, middle := "", "", ""
	m.scenario("a worker dies in a copy", func(m machine) { base = s.in(m).diesInCopy() })
	m.scenario("images", func(m machine) { disk, middle = s.in(m).groupImages(base) })
	m.scenario("a worker dies in a merge", func(m machine) { s.in(m).diesInMerge(base, disk, middle) })
	m.scenario("all is given back", func(m machine) { s.in(m).groupEmptied() })
	if now := s.ofStrangers(); now != theirs {
		m.Errorf("what is not diskhook's was:\n%s\nand is:\n%s", theirs, now)
	}
}

// noise makes a file of so many bytes that differ, the same each time.
func (m machine) noise(path string, n int) {
	m.Helper()
	b := make([]byte, n)
	_, err := rand.NewChaCha8([32]byte{}).Read(b)
	m.must(err)
	m.write(path, string(b), 0o644)
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
		s.run("lvcreate", "-y", "-q", "-Zn", "-Wn", "-n", name, "-L", "2m", "--addtag", "theirs", "san")
		s.must(os.WriteFile("/dev/san/"+name, bytes.Repeat([]byte{byte(letter + 3)}, 2<<20), 0))
	}
	return s.ofStrangers()
}

var strangers = []string{"other", "7c9e6679-7425-40de-944b-e07fc1f90ae7.raw"}

// ofStrangers is all that is to be known of them, with every byte.
func (s site) ofStrangers() string {
	s.Helper()
	volumes, nodes := []string{"--noheadings", "-o", "lv_name,lv_uuid,lv_size,lv_tags,lv_attr,seg_pe_ranges"}, []string{}
	for _, name := range strangers {
		volumes, nodes = append(volumes, "san/"+name), append(nodes, "/dev/san/"+name)
	}
	return s.run("lvs", volumes...) + "\n" + s.run("sha256sum", nodes...)
}

// ours are the volumes of images, or those that are active on this host.
func (s site) ours(active bool) []string {
	s.Helper()
	var names []string
	for line := range strings.Lines(s.run("lvs", "--noheadings", "-o", "lv_name,lv_attr", "san")) {
		fields := strings.Fields(line)
		if len(fields) == 2 && !strings.HasPrefix(fields[0], "dh_documents") && !slices.Contains(strangers, fields[0]) && (!active || fields[1][4] == 'a') {
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
		args := []string{"repo", "create", "--format", "clvm-1.2", "--set", "vg=san", "--set", "documents=256"}
		for _, pair := range set {
			args = append(args, "--set", pair)
		}
		return s.tries(append(args, "images")...)
	}
	s.refused(create(), 7, "nothing keeps two hosts from changing it at once", "--set writer="+s.id, "vgchange --lock-type sanlock san")
	if made := s.ours(false); len(made) > 0 || exists("/dev/san/dh_documents") {
		s.Errorf("made: %q", made)
	}
	s.refused(create("writer="+s.id), 0)
	s.refused(create("writer="+s.id), 0) // the same again
}

// span is a part of an image in which all bytes are of one value.
type span struct {
	value byte
	at, n int64
}

// expect is a file with what an image should hold: source, and then what was written.
func (s site) expect(name, source string, written ...span) string {
	s.Helper()
	b, err := os.ReadFile(source)
	s.must(err)
	for _, w := range written {
		copy(b[w.at:], bytes.Repeat([]byte{w.value}, int(w.n)))
	}
	path := "/srv/" + name
	s.write(path, string(b), 0o644)
	return path
}

// io writes to a volume as a VM would.
func (s site) io(path string, write ...span) {
	s.Helper()
	_, kind, _ := strings.Cut(path[strings.LastIndex(path, "/")+1:], ".")
	args := []string{"-f", kind, "-t", "none"}
	for _, w := range write {
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", w.value, w.at, w.n))
	}
	s.run("qemu-io", append(args, path)...)
}

// guest has a disk as long as it takes a VM to write to it.
func (s site) guest(ref string, write ...span) {
	s.Helper()
	s.io(s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", ref), write...)
	s.does("image", "release", "--holder", "vm", ref)
}

// made runs a verb to its end, and returns the image that it made.
func (s site) made(verb string, args ...string) string {
	s.Helper()
	return "images/" + s.does(append([]string{"image", verb, "--wait"}, args...)...)
}

func imageID(ref string) string { return ref[strings.Index(ref, "/")+1:] }

// dying has the work on images die at failpoints; alive lets it be. The units inherit it
// from systemd: with a drop-in that had to reload all others.
func (m machine) dying(points ...string) {
	m.Helper()
	m.run("systemctl", "set-environment", "DISKHOOK_FAILPOINT="+strings.Join(points, "=kill,")+"=kill")
}

func (m machine) alive() {
	m.Helper()
	m.run("systemctl", "unset-environment", "DISKHOOK_FAILPOINT")
}

// dies waits until nobody works on an image of which something is left to be done.
func (s site) dies(ref string) {
	s.Helper()
	s.within("its worker has died", func() bool {
		st := s.status(ref)
		if !st.Open {
			s.Fatal("the work was done before anything could happen to it")
		}
		state := s.try("", "systemctl", "show", "-P", "SubState", "diskhook-image-"+imageID(ref)).output
		return !st.Running && strings.TrimSpace(state) != "running"
	})
}

func (s site) diesInCopy() (base string) {
	s.dying("transfer.chunk")
	id := s.does("image", "import", "images", sanSource)
	base = "images/" + id
	s.dies(base)
	s.alive()
	if st := s.status(base); st.State != "broken" {
		s.Errorf("half an image is %+v", st)
	}
	s.refused(s.tries("image", "prepare", "--holder", "vm", base), 7)
	s.does("image", "resume", "--wait", base)
	if st := s.status(base); st.State != "optimized" {
		s.Errorf("in the end it is %+v", st)
	}
	s.holds(base, sanSource)
	return base
}

func (s site) groupImages(base string) (disk, middle string) {
	blank := s.made("create", "--size", "2M", "images")
	s.write("/srv/zero.raw", strings.Repeat("\x00", 2<<20), 0o644)
	s.holds(blank, "/srv/zero.raw") // on a disk that was full of 0xaa

	disk = s.made("create", "--base", imageID(base), "images")
	written := []span{{7, 1 << 20, 64 << 10}, {8, 4 << 20, 1 << 20}}
	path := s.does("image", "prepare", "-o", "name", "--write", "--holder", "vm", disk)
	if name := path[strings.LastIndex(path, "/")+1:]; !slices.Contains(s.ours(true), name) {
		s.Errorf("%s is prepared and not active", name)
	}
	s.refused(s.tries("image", "remove", disk), 4, "it is in use: by vm")
	s.io(path, written...)
	s.does("image", "release", "--holder", "vm", disk)
	middle = s.made("snapshot", disk)
	s.guest(disk, span{9, 2 << 20, 512 << 10})

	first := s.expect("first.raw", sanSource, written...)
	second := s.expect("second.raw", first, span{9, 2 << 20, 512 << 10})
	copied := s.made("copy", disk, "images")
	s.does("image", "resize", "--wait", copied, "9M")
	grown := s.expect("grown.raw", second)
	s.must(os.Truncate(grown, 9<<20))
	s.holds(copied, grown)

	// Two readers of what lies below a disk: it goes when both have gone.
	s.does("image", "prepare", "-o", "name", "--holder", "other", middle)
	s.holds(middle, first)
	if active := s.ours(true); len(active) != 2 {
		s.Errorf("a snapshot over another is in use, and active are %q", active)
	}
	s.does("image", "release", "--holder", "other", middle)
	s.idle()
	return disk, middle
}

// diesInMerge removes what lies between a disk and its base.
func (s site) diesInMerge(base, disk, middle string) {
	s.does("image", "remove", middle)
	s.within("what is left of it can be merged", func() bool {
		r := s.tries("repo", "check", "images")
		return r.code == 8 && strings.Contains(r.output, "merge")
	})
	s.dying("repository.merge.header", "repository.merge.sunk")
	s.does("repo", "fix", "--all", "images")
	s.dies(disk)
	s.alive()
	s.does("image", "resume", "--wait", disk)
	s.holds(disk, "/srv/second.raw")
	s.does("repo", "fix", "--all", "--wait", "images")
	s.refused(s.tries("repo", "check", "--deep", "images"), 0)
	s.holds(disk, "/srv/second.raw")
	s.holds(base, sanSource)
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
