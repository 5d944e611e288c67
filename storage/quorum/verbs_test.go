// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

func TestBuild(t *testing.T) {
	w := built(t)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
	if d := w.decision(); d.Unclean || d.Base.Number != 1 {
		t.Errorf("decision %+v", d)
	}
	set, err := w.Build(t.Context(), w.building())
	must(t, err)
	if set.Intent != nil || set.NextID != 4 {
		t.Errorf("the same call again: %+v", set)
	}
}

func TestVerifyNamesTheReplicaAndTheRanges(t *testing.T) {
	w := built(t)
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	if !v.Equal() || v.Read >= diskSize {
		t.Fatalf("fresh: %+v", v)
	}
	w.spoil("r2", "0x11", "512k", "64k")
	w.spoil("r2", "0x12", "7M", "4k")
	v, err = w.Verify(t.Context(), "db", nil)
	must(t, err)
	want := map[string][]quorum.Range{"r2": {{Offset: 512 << 10, Length: 64 << 10}, {Offset: 7 << 20, Length: 4 << 10}}}
	if diff := cmp.Diff(want, v.Differs); diff != "" || len(v.NoMajority) > 0 {
		t.Errorf("%s%v", diff, v.NoMajority)
	}
	w.refused(v.Err(), failure.Problems, "r2 differs in 69632 bytes from byte 524288 on", "diskhook quorum resync db")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
}

func TestNothingIsRepairedWithoutAMajority(t *testing.T) {
	w := built(t)
	w.spoil("r1", "0x11", "1M", "4k")
	w.spoil("r2", "0x22", "1M", "4k")
	w.spoil("r2", "0x22", "5M", "4k")
	_, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Problems, "no majority in 4096 bytes from byte 1048576 on", "resync --from ID db")
	w.same(w.replica("r3"), w.flat)
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	if len(v.Differs["r2"]) != 1 || len(v.NoMajority) != 1 {
		t.Errorf("something was repaired: %+v", v)
	}
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r3"})
	must(t, err)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
}

// What must not be built is refused in one line, and leaves nothing behind.
func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world, *quorum.Building)
		kind   *failure.Kind
		words  []string
	}{
		"threshold 0":      {func(_ *world, b *quorum.Building) { b.Threshold = 0 }, failure.Usage, []string{"threshold 0: it must be at least 1"}},
		"threshold beyond": {func(_ *world, b *quorum.Building) { b.Threshold = 4 }, failure.Usage, []string{"threshold 4: there are only 3 replicas"}},
		"minority":         {func(_ *world, b *quorum.Building) { b.Threshold = 1 }, failure.Usage, []string{"--allow-minority"}},
		"twice":            {func(_ *world, b *quorum.Building) { b.Replicas[1] = b.Replicas[0] }, failure.Usage, []string{"a.raw is also in replica r1"}},
		"no source":        {func(_ *world, b *quorum.Building) { b.From = nil }, failure.Usage, []string{"--from SRC, --adopt or --size"}},
		"outside":          {func(_ *world, b *quorum.Building) { b.Replicas[0].Path = "/var/a.raw" }, failure.Precondition, []string{"[paths] roots"}},
		"no folder":        {func(w *world, b *quorum.Building) { b.Replicas[0] = w.file("none/a.raw", "raw") }, failure.NotFound, []string{"none"}},
		"a folder":         {func(w *world, b *quorum.Building) { b.Replicas[0] = w.file("etc", "raw") }, failure.Precondition, []string{"neither a block device nor a regular file"}},
		"the source":       {func(w *world, b *quorum.Building) { b.Replicas[1] = w.file("base.raw", "raw") }, failure.Conflict, []string{"base.raw is the source"}},
		"the source, hard": {func(w *world, b *quorum.Building) {
			must(w.T, os.Link(w.path("base.raw"), w.path("link.raw")))
			b.Replicas[1] = w.file("link.raw", "raw")
		}, failure.Conflict, []string{"link.raw is the source"}},
		"one inode": {func(w *world, b *quorum.Building) {
			must(w.T, os.WriteFile(w.path("a.raw"), nil, 0o600))
			must(w.T, os.Link(w.path("a.raw"), w.path("c.raw")))
		}, failure.Conflict, []string{"is also replica r"}},
		"not empty": {func(w *world, b *quorum.Building) {
			must(w.T, os.WriteFile(w.path("c.raw"), []byte("data"), 0o600))
		}, failure.Conflict, []string{"c.raw", "not empty", "--overwrite"}},
		"in use": {func(w *world, b *quorum.Building) {
			must(w.T, os.WriteFile(w.path("c.raw"), []byte("data"), 0o600))
			b.Overwrite = true
			cmd := exec.Command("sleep", "600")
			f, err := os.OpenFile(w.path("c.raw"), os.O_RDWR, 0)
			must(w.T, err)
			cmd.Stdin = f
			must(w.T, cmd.Start())
			w.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = f.Close() })
		}, failure.Conflict, []string{"c.raw is in use by process"}},
		"another set's": {func(w *world, b *quorum.Building) {
			other := w.building()
			other.Name = "other"
			_, err := w.Build(w.Context(), other)
			must(w.T, err)
			b.Overwrite = true
		}, failure.Conflict, []string{"a.raw is replica r1 of replica set other"}},
		"a strange mark": {func(w *world, b *quorum.Building) {
			other := w.building()
			other.Name = "other"
			_, err := w.Build(w.Context(), other)
			must(w.T, err)
			must(w.T, os.Remove(w.path("etc/diskhook/quorum.d/other.json")))
			b.Overwrite = true
		}, failure.Conflict, []string{"it has the mark of another replica set"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			b := w.building()
			c.change(w, &b)
			before := w.files()
			_, err := w.Build(t.Context(), b)
			w.refused(err, c.kind, c.words...)
			if diff := cmp.Diff(before, w.files()); diff != "" {
				t.Errorf("something was changed: %s", diff)
			}
			if _, err := w.Load("db"); failure.KindOf(err) != failure.NotFound {
				t.Errorf("it is defined: %v", err)
			}
		})
	}
}

// files are all files of the world but for locks, with their sizes.
func (w *world) files() map[string]int64 {
	w.Helper()
	all := map[string]int64{}
	must(w.T, filepath.WalkDir(w.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.Contains(path, "/run/diskhook/lock/") {
			return err
		}
		st, err := entry.Info()
		all[path] = st.Size()
		return err
	}))
	return all
}

func TestBuildOfZeros(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	b.From, b.Size = nil, diskSize
	must(t, os.WriteFile(w.path("c.raw"), bytes.Repeat([]byte("old"), 1000), 0o600))
	b.Overwrite = true
	_, err := w.Build(t.Context(), b)
	must(t, err)
	must(t, os.Truncate(w.flat, 0))
	must(t, os.Truncate(w.flat, diskSize))
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
}

// Images with backing files of their own are taken as they are, if they are
// equal.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	b := quorum.Building{Name: "db", Threshold: 2, Adopt: true}
	for _, name := range []string{"a", "b", "c"} {
		base, top := w.path(name+"-base.raw"), w.path(name+".qcow2")
		w.tool("cp", w.path("base.raw"), base)
		w.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, top, fmt.Sprint(diskSize))
		w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x33 3M 192k", top)
		b.Replicas = append(b.Replicas, w.file(name+".qcow2", "qcow2"))
	}
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 5M 4k", b.Replicas[2].Path)
	_, err := w.Build(t.Context(), b)
	w.refused(err, failure.Problems, "r3 differs in 4096 bytes from byte 5242880 on")
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -z 5M 4k", b.Replicas[2].Path)
	set, err := w.Build(t.Context(), b)
	must(t, err)
	if got := len(set.Replicas[1].Chain); got != 2 {
		t.Errorf("a chain of %d", got)
	}
	w.holds(w.flat)
	// Writes go to the top, never below it.
	before, err := os.ReadFile(w.path("b-base.raw"))
	must(t, err)
	w.spoil("r2", "0x11", "0", "64k")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	w.holds(w.flat)
	if after, err := os.ReadFile(w.path("b-base.raw")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the backing file was written to (%v)", err)
	}
}

func TestTruncatedAndMissing(t *testing.T) {
	w := built(t)
	must(t, os.Truncate(w.path("c.raw"), diskSize/2))
	d := w.decision()
	if len(d.Left) != 1 || d.Left[0].Stale || !strings.Contains(d.Left[0].Why, "it has 4194304 bytes, the set has 8388608") {
		t.Errorf("truncated: %+v", d)
	}
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	w.refused(v.Err(), failure.Problems, "r3 is missing", "diskhook quorum replace db ID NEW")
	must(t, os.Remove(w.path("b.qcow2")))
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Precondition, "1 of its replicas are there, 2 are needed")
	_, err = w.Replace(t.Context(), "db", quorum.Replacing{Old: "r2", New: w.file("d.raw", "raw")})
	w.refused(err, failure.Precondition, "1 of its replicas have the newest generation 1, 2 are needed", "r2:", "r3:")
	if _, err := os.Stat(w.path("d.raw")); err == nil {
		t.Error("an image was made all the same")
	}
	if set, err := w.Load("db"); err != nil || set.Intent != nil {
		t.Errorf("%+v %v", set, err)
	}
}

func TestReplaceOfAMissingReplica(t *testing.T) {
	w := built(t)
	must(t, os.Remove(w.path("c.raw")))
	id, err := w.Replace(t.Context(), "db", quorum.Replacing{Old: "r3", New: w.file("d.raw", "raw")})
	must(t, err)
	if id != "r4" {
		t.Errorf("id %s", id)
	}
	w.holds(w.flat)
	w.opens("r1", "r2", "r4")
	again, err := w.Replace(t.Context(), "db", quorum.Replacing{Old: "r3", New: w.file("d.raw", "raw")})
	if again != "r4" || err != nil {
		t.Errorf("the same again: %s %v", again, err)
	}
	if _, err := w.Replace(t.Context(), "db", quorum.Replacing{Old: "r9", New: w.file("e.raw", "raw")}); failure.KindOf(err) != failure.NotFound {
		t.Errorf("%v", err)
	}
}

// Whoever serves the set holds its lock, and every verb but status refuses.
func TestVerbsRefuseASetInUse(t *testing.T) {
	w := built(t)
	held, err := w.Lock("db")
	must(t, err)
	for name, j := range map[string]job{
		"build":   {Build: &quorum.Building{Name: "db"}},
		"resync":  {Resync: &quorum.Resyncing{}},
		"replace": {Replace: &quorum.Replacing{Old: "r1"}},
		"remove":  {Remove: new(bool)},
	} {
		t.Run(name, func(t *testing.T) {
			w.refused(j.run(t.Context(), w.Service), failure.Conflict, "replica set db: it is served to a guest")
		})
	}
	_, err = w.Verify(t.Context(), "db", nil)
	w.refused(err, failure.Conflict, "replica set db: it is served to a guest")
	st, err := w.Status(t.Context(), "db")
	if must(t, err); !st.Served || len(st.Replicas) != 3 || !st.Replicas[0].Votes {
		t.Errorf("%+v", st)
	}
	held.Release()
	// A program that has an image open, whoever it is, is noticed by QEMU's locks.
	cmd := exec.Command("qemu-io", "-f", "raw", w.path("a.raw"))
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = stdin.Close(); _ = cmd.Wait() }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, used, _ := blockdev.InUse(w.path("a.raw")); used || time.Now().After(deadline) {
			break
		}
	}
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Conflict, "a running QEMU or qemu-img has its image lock")
}

// A replica on an NBD server, whose mark is in the host's state.
func TestReplicaOverNBD(t *testing.T) {
	w := newWorld(t)
	must(t, os.WriteFile(w.path("remote.raw"), nil, 0o600))
	must(t, os.Truncate(w.path("remote.raw"), diskSize+4096))
	socket := w.path("n.sock")
	cmd := exec.Command("qemu-nbd", "-t", "-f", "raw", "-x", "disk", "-e", "4", "-k", socket, w.path("remote.raw"))
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 200 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	l, err := quorum.ParseReplica("nbd+unix:///disk?socket="+socket, "")
	must(t, err)
	b := w.building()
	b.Replicas[2] = l
	set, err := w.Build(t.Context(), b)
	must(t, err)
	w.opens("r1", "r2", "r3")
	if _, err := os.Stat(w.path("var/lib/diskhook/quorum/" + set.UUID + "/r3.json")); err != nil {
		t.Error(err)
	}
	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x55 1M 4k", w.path("a.raw"))
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	if diff := cmp.Diff(map[string][]quorum.Range{"r1": {{Offset: 1 << 20, Length: 4096}}}, v.Differs); diff != "" {
		t.Error(diff)
	}
	w.tool("qemu-img", "compare", "-q", "-U", "-f", "raw", "-F", "raw", w.flat, w.path("remote.raw"))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if d := w.decision(); d.Veto != nil || len(d.Open) != 2 || d.Left[0].ID != "r3" {
		t.Errorf("%+v", d)
	}
}

// The trees are those that QEMU's tools take, and the vote is QEMU's.
func TestTreesOpenInQEMU(t *testing.T) {
	w := built(t)
	set, err := w.Load("db")
	must(t, err)
	var trees []*quorum.Node
	for _, r := range set.Replicas {
		tree, err := set.ReplicaNode(r, quorum.Opening{Direct: true})
		must(t, err)
		trees = append(trees, tree)
	}
	all, err := set.Tree(trees).Pseudo()
	must(t, err)
	w.spoil("r2", "0x11", "3M", "64k")
	w.tool("qemu-io", "-c", "read -q -P 0x33 3M 192k", all)
	w.tool("qemu-img", "compare", "-q", all, w.flat)
}

// A set stands for the disk that it was built from as long as nobody wrote to
// that disk; the fingerprint tells without reading either.
func TestCurrent(t *testing.T) {
	w := built(t)
	set, err := w.Load("db")
	must(t, err)
	if set.Source == nil || set.Source.Fingerprint == "" {
		t.Fatal("the set does not know what it was built from")
	}
	must(t, w.Current(t.Context(), "db", w.source, nil))

	// Touched, and not written to: the content decides.
	must(t, os.Chtimes(w.source[1].Path, time.Now(), time.Now().Add(time.Hour)))
	w.spoil("r2", "0x11", "512k", "4k") // outvoted
	must(t, w.Current(t.Context(), "db", w.source, nil))

	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 5M 64k", w.source[0].Path)
	err = w.Current(t.Context(), "db", w.source, nil)
	w.refused(err, failure.Conflict, "it does not hold what "+w.source[0].Path+" holds now: 65536 bytes differ from byte 5242880 on",
		"diskhook quorum remove db", "diskhook quorum build --overwrite --replicas "+w.path("a.raw")+","+w.path("b.qcow2")+","+w.path("c.raw")+" --threshold 2 --from "+w.source[0].Path+" --from-format qcow2 db")

	// The disk is a replica itself, of which only one of three was written to.
	w.spoil("r1", "0x55", "6M", "4k")
	err = w.Current(t.Context(), "db", []imagecheck.Layer{{Path: w.path("a.raw"), Format: "raw"}}, nil)
	w.refused(err, failure.Conflict, "4096 bytes differ from byte 6291456 on", "diskhook quorum resync --from r1 db")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r1"})
	must(t, err)
	must(t, w.Current(t.Context(), "db", []imagecheck.Layer{{Path: w.path("a.raw"), Format: "raw"}}, nil))
}

// What a guest wrote to a set is not in the disk that the set was built from.
func TestCurrentAfterAGuest(t *testing.T) {
	w := served(t)
	w.works("write -P 9 5M 4k", "flush")
	w.refused(w.Current(t.Context(), "db", w.source, nil), failure.Conflict, "it is served to a guest")
	w.stop()
	w.refused(w.Current(t.Context(), "db", w.source, nil), failure.Conflict, "4096 bytes differ from byte 5242880 on")
}

// A build whose source is written to between a crash and the same call again
// has what the source holds then.
func TestBuildGoesOnWithAChangedSource(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	if err := w.verb(job{Build: &b}, "DISKHOOK_FAILPOINT=quorum.made.r3=kill"); err == nil {
		t.Fatal("it was not killed")
	}
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x44 5M 64k", w.source[0].Path)
	set, err := w.Build(t.Context(), b)
	must(t, err)
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", w.source[0].Path, w.flat)
	w.holds(w.flat)
	if set.Intent != nil {
		t.Error("it is not complete")
	}
	must(t, w.Current(t.Context(), "db", w.source, nil))
}
