// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/stream"
)

// TestThinExport has volumes leave a cluster, and come into another one, on a host
// that is in both.
func TestThinExport(t *testing.T) {
	host{install: "install", boots: []boot{{"export", thinExport, powerCut}}}.run(t)
}

func thinExport(m machine) {
	e := exporting{labMachine{machine: m, name: "alpha"}}
	e.prepare()
	e.configure(map[string]string{"lvm.devices": `["/dev/mapper/disk-lab", "/dev/mapper/disk-far"]`})
	for i, cluster := range []string{"lab", "far"} {
		e.cluster(cluster, i)
	}
	e.volume()
	e.live()
	e.on("lab", "detach", "one")
	e.offline()
	e.refusals()
	e.images()
	e.imports()
	e.moves()
	e.on("lab", "attach", "base")
	e.holds("base", 'a', 0, 1*mib)
	e.holds("base", 'a', 8*mib, 9*mib)
	e.on("lab", "detach", "base")
	for _, cluster := range []string{"lab", "far"} {
		e.clean(cluster)
	}
	e.cutPower()
}

// exporting is the host.
type exporting struct{ labMachine }

// on runs a verb on a cluster.
func (e exporting) on(cluster, verb string, args ...string) string {
	e.Helper()
	return e.thin(append([]string{verb, "--cluster", cluster}, args...)...)
}

// cluster makes one on a half of the disk.
func (e exporting) cluster(name string, half int) {
	e.Helper()
	// Not from the first sector on, where LVM would find the label twice.
	const begin, sectors = 2048, pvSize/2/512 - 2048
	e.run("dmsetup", "create", "disk-"+name, "--table", fmt.Sprintf("0 %d linear /dev/vdb %d", sectors, begin+half*sectors))
	e.run("vgcreate", name, "/dev/mapper/disk-"+name)
	e.thin("init-cluster", "--vg", name, "--size", "128M", name)
	for _, verb := range []string{"on-master", "init-host", "on-join"} {
		e.on(name, verb)
	}
}

// oneSize is no whole number of the cluster's blocks, and has a tail of its own.
const oneSize = oddSize

// want is what volume one has in the end, as a file.
const want = "/root/one.raw"

// volume makes one, attached, in part shared with base.
func (e exporting) volume() {
	e.Helper()
	e.on("lab", "create", "one", fmt.Sprint(oneSize))
	e.on("lab", "attach", "one")
	e.fill("one", 'a', 0, 1*mib)
	e.fill("one", 'a', 8*mib, 9*mib)
	e.on("lab", "snapshot", "one", "base")
	e.fill("one", 'b', 8*mib+mib/2, 10*mib)
	f, err := os.OpenFile(device("one"), os.O_RDWR, 0)
	e.must(err)
	defer f.Close()
	_, err = f.WriteAt(labBlock('t', oneSize)[:512], oneSize-512)
	e.must(errors.Join(err, f.Sync()))
}

// has wants what volume made, through any reader of the disk.
func (e exporting) has(what string, disk func(b []byte, at int64) error) {
	e.Helper()
	for _, part := range []struct {
		seed     byte
		from, to int64
	}{{'a', 0, mib}, {'a', 8 * mib, 8*mib + mib/2}, {'b', 8*mib + mib/2, 10 * mib}} {
		b := make([]byte, labStep)
		for at := part.from; at < part.to; at += labStep {
			e.must(disk(b, at))
			if !bytes.Equal(b, labBlock(part.seed, at)) {
				e.Fatalf("%s: at %d: %q…, want %q…", what, at, b[:24], labBlock(part.seed, at)[:24])
			}
		}
	}
}

// live exports while somebody writes: what was flushed before is there.
func (e exporting) live() {
	e.Helper()
	ctx, stop := context.WithCancel(e.Context())
	written := make(chan error, 1)
	go func() { written <- e.scribble(ctx) }()
	var streams []stream.Stream
	for _, format := range []string{"text", "json"} {
		path := filepath.Join("/root", "live."+format)
		e.on("lab", "export", "--format", format, "one", path)
		s := e.stream(path)
		streams = append(streams, s)
		if s.State != stream.Live {
			e.Errorf("%s: a stream that is %s of a volume that is written to", path, s.State)
		}
		e.behind(s)
	}
	e.refused(e.try("", "diskhook", "thin", "import", "--cluster", "far", "--from", "lab", "/root/live.text"), 4, "it was exported while a host wrote", "thin snapshot one NEW")
	e.on("lab", "export", "--format", "xml", "one", "/root/live.xml")
	e.restores("/root/live.xml")
	// An image of something that moves would be of no moment at all.
	e.refused(e.try("", "diskhook", "thin", "export", "--cluster", "lab", "--format", "vhd", "one", "/root/live.vhd"), 4, "thin snapshot one NEW")
	e.on("lab", "snapshot", "one", "moment")
	e.on("lab", "export", "--format", "vhd", "moment", "/root/live.vhd")
	stop()
	e.must(<-written)
	e.run("qemu-img", "convert", "-f", "vpc", "-O", "raw", "/root/live.vhd", "/root/live.raw")
	f, err := os.Open("/root/live.raw")
	e.must(err)
	defer f.Close()
	e.has("live.vhd", func(b []byte, at int64) error { _, err := f.ReadAt(b, at); return err })
	e.on("lab", "delete", "moment")
	if streams[0].Volume != streams[1].Volume || streams[0].Generation != streams[1].Generation {
		e.Errorf("two streams of one volume: %+v, %+v", streams[0], streams[1])
	}
	e.run("qemu-img", "convert", "-f", "raw", "-O", "raw", device("one"), want)
}

// scribble writes to a part of one that nobody looks at, until ctx ends.
func (e exporting) scribble(ctx context.Context) error {
	f, err := os.OpenFile(device("one"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for at := int64(0); ctx.Err() == nil; at = (at + labStep) % (4 * mib) {
		if _, err := f.WriteAt(labBlock('w', at), 12*mib+at); err != nil {
			return errors.Join(err, f.Close())
		}
		if err := f.Sync(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// behind reads what is behind a stream's addresses, without the cluster.
func (e exporting) behind(s stream.Stream) {
	e.Helper()
	data, err := layout.Open("/dev/lab/"+layout.DataName, false)
	e.must(err)
	defer data.Close()
	contents := s.Contents(data)
	e.has("stream of "+s.Name, func(b []byte, at int64) error { _, err := contents.Data.ReadAt(b, at); return err })
}

func (e exporting) stream(path string) stream.Stream {
	e.Helper()
	f, err := os.Open(path)
	e.must(err)
	defer f.Close()
	s, err := stream.Read(f)
	e.must(err)
	return s
}

// restores has thin_restore take the XML form, and returns how many blocks that maps.
func (e exporting) restores(xml string) int {
	e.Helper()
	const image = "/root/restored"
	e.run("truncate", "-s", "4M", image)
	e.run("thin_restore", "-q", "-i", xml, "-o", image)
	e.run("thin_check", "-q", image)
	var mapped int
	_, err := fmt.Sscan(e.run("thin_ls", "--no-headers", "-o", "MAPPED_BLOCKS", image), &mapped)
	e.must(err)
	return mapped
}

// offline exports a volume that nobody has, in every form.
func (e exporting) offline() {
	e.Helper()
	for _, format := range []string{"text", "json", "xml", "vhd"} {
		e.on("lab", "export", "--format", format, "one", "/root/one."+format)
	}
	text, json := e.stream("/root/one.text"), e.stream("/root/one.json")
	if diff := cmp.Diff(text, json); diff != "" || text.State != stream.Offline {
		e.Errorf("%s: text and JSON differ: %s", text.State, diff)
	}
	shared := 0
	for _, r := range text.Mapping.Runs {
		if r.Base != 0 {
			shared++
		}
	}
	if shared == 0 || shared == len(text.Mapping.Runs) {
		e.Errorf("%d of %d runs are shared with base, want some", shared, len(text.Mapping.Runs))
	}
	e.behind(text)
	if mapped := e.restores("/root/one.xml"); mapped != int(text.Mapping.Blocks()) {
		e.Errorf("XML: %d blocks, the text has %d", mapped, text.Mapping.Blocks())
	}
	e.same("/root/one.vhd")
}

// same compares an image with what the volume had.
func (e exporting) same(image string) {
	e.Helper()
	e.run("qemu-img", "compare", "-f", "vpc", "-F", "raw", image, want)
	if got := e.run("qemu-img", "info", "-f", "vpc", image); !strings.Contains(got, fmt.Sprintf("(%d bytes)", oneSize)) {
		e.Errorf("%s: %s", image, got)
	}
}

// looks is all that a cluster has, and this host of it.
func (e exporting) looks(cluster string) string {
	e.Helper()
	notes, err := filepath.Glob("/var/lib/diskhook/thin/" + cluster + ".imports/*")
	e.must(err)
	return strings.Join([]string{
		e.on(cluster, "status", "-o", "name"), e.run("lvs", "--noheadings", "-o", "lv_name", "-O", "lv_name", cluster),
		e.run("sh", "-c", "ls /run/diskhook/thin/"+cluster+" 2>/dev/null || true"), fmt.Sprint(notes),
	}, "\n")
}

// refusals has nothing come of what is not whole, or of something else. Unit tests
// have streams that are damaged in every way.
func (e exporting) refusals() {
	e.Helper()
	e.on("far", "create", "other", "8M")
	e.on("far", "export", "other", "/root/other.text")
	for script, path := range map[string]string{
		"head -c -9 one.text": "cut.text", "sed '0,/\"length\": ./s//\"length\": 9/' one.json": "forged.json", "head -c 700K one.vhd": "cut.vhd",
	} {
		e.run("sh", "-euc", "cd /root; ("+script+") >"+path)
	}
	before := e.looks("far")
	for _, r := range []struct {
		file, word string
		flags      []string
	}{
		{"cut.text", "it is cut off", nil},
		{"forged.json", "it ends with", nil},
		{"one.vhd", "it is a VHD image", nil},
		{"other.text", "it is of cluster", nil},
		{"cut.vhd", "beyond the end", []string{"--format", "vhd"}},
	} {
		flags := r.flags
		if flags == nil {
			flags = []string{"--from", "lab"}
		}
		args := append(append([]string{"thin", "import", "--cluster", "far", "--name", "bad"}, flags...), "/root/"+r.file)
		e.refused(e.try("", "diskhook", args...), 7, r.word, "hint: ")
	}
	if diff := cmp.Diff(before, e.looks("far")); diff != "" {
		e.Errorf("refused imports left something: %s", diff)
	}
	e.on("far", "delete", "other")
}

// images has an image come in.
func (e exporting) images() {
	e.Helper()
	e.on("lab", "import", "--format", "vhd", "--name", "back", "/root/one.vhd")
	e.on("lab", "export", "--format", "vhd", "back", "/root/back.vhd")
	e.same("/root/back.vhd")
	e.on("lab", "delete", "back")
}

// killed runs a verb that a crash ends at a failpoint.
func (e exporting) killed(at string, args ...string) {
	e.Helper()
	cmd := exec.CommandContext(e.Context(), "./diskhook.failpoints", patient(args...)...)
	cmd.Env = append(os.Environ(), "DISKHOOK_FAILPOINT="+at+"=kill")
	out, err := cmd.CombinedOutput()
	if state, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || state.Signal() != syscall.SIGKILL {
		e.Fatalf("%q did not end at %s: %v: %s", args, at, err, out)
	}
}

// imports copies one to the other cluster.
func (e exporting) imports() {
	e.Helper()
	e.thin("import", "--cluster", "far", "--from", "lab", "/root/one.text")
	e.arrived()
	if !strings.Contains("\n"+e.on("lab", "status", "-o", "name")+"\n", "\none\n") {
		e.Error("a copy took the original away")
	}
	e.on("far", "delete", "one")
}

// moves has it there, and no longer here, though it is killed on the way.
func (e exporting) moves() {
	e.Helper()
	moving := []string{"import", "--cluster", "far", "--from", "lab", "--move", "/root/one.text"}
	for _, at := range []string{"thin.import.filled", "thin.import.moved"} { // unit tests have all of them
		e.killed(at, moving...)
	}
	e.thin(moving...)
	e.arrived()
	if got := e.on("lab", "status", "-o", "name"); got != "base" {
		e.Errorf("the cluster that it was moved from has volumes %q", got)
	}
}

// arrived wants the volume whole in the other cluster, and nothing beside it.
func (e exporting) arrived() {
	e.Helper()
	got := e.on("far", "status", "-o", "name")
	notes, err := filepath.Glob("/var/lib/diskhook/thin/far.imports/*")
	e.must(err)
	if got != "one" || len(notes) != 0 {
		e.Errorf("the cluster has volumes %q, and notes %q", got, notes)
	}
	_ = os.Remove("/root/arrived.vhd")
	e.on("far", "export", "--format", "vhd", "one", "/root/arrived.vhd")
	e.same("/root/arrived.vhd")
}

// clean stops a cluster's pool and has thin_check look at its metadata.
func (e exporting) clean(cluster string) {
	e.Helper()
	e.on(cluster, "check")
	e.on(cluster, "on-leave")
	var s labStatus
	e.must(json.Unmarshal([]byte(e.on(cluster, "status", "-o", "json")), &s))
	e.thinCheck(s, cluster, e.name)
}
