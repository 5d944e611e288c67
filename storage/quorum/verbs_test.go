// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/blockdev"
	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

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

func TestTruncatedAndMissing(t *testing.T) {
	w := built(t)
	must(t, os.Truncate(w.path("c.raw"), diskSize/2))
	d := w.decision()
	if len(d.Left) != 1 || d.Left[0].Stale || !strings.Contains(d.Left[0].Why, "it has 4194304 bytes, the set has 8388608") {
		t.Errorf("truncated: %+v", d)
	}
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	w.refused(v.Err(), failure.Problems, "r3 is missing", "diskhook quorum replace db r3 NEW")
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

// Whoever resync leaves out is told, and keeps its vote where the others were
// equal without it.
func TestResyncTellsWhoIsLeftOut(t *testing.T) {
	w := built(t)
	must(t, os.Rename(w.path("c.raw"), w.path("c.away")))
	for range 2 {
		_, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
		w.refused(err, failure.Problems, "replica set db: r3 is left out: stat "+w.path("c.raw")+": no such file", "diskhook quorum replace db r3 NEW")
	}
	_, err := w.ExplainResync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Problems, "r3 is left out: ")
	must(t, os.Rename(w.path("c.away"), w.path("c.raw")))
	w.opens("r1", "r2", "r3")
	if d := w.decision(); d.Base.Number != 1 {
		t.Errorf("the generation has risen to %d", d.Base.Number)
	}
	w.spoil("r2", "0x22", "1M", "64k")
	t.Setenv("DISKHOOK_FAILPOINT", "quorum.mark.r3=error")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	t.Setenv("DISKHOOK_FAILPOINT", "")
	w.refused(err, failure.Problems, "replica set db: r2 was made equal; r3 is left out: ", "injected failure", "diskhook quorum resync db")
	w.opens("r1", "r2")
	w.noted(quorum.EventResynced, "r2", "")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	w.noted(quorum.EventResynced, "r3", "")
	w.opens("r1", "r2", "r3")
	w.holds(w.flat)
}

// A replace that cannot end, as its image's disk broke, is given up for one with
// another image, and by resync.
func TestReplaceIsGivenUp(t *testing.T) {
	begun := func(t *testing.T, replicas int, point string) *world {
		w := newWorld(t)
		b := w.building()
		b.Replicas = b.Replicas[:replicas]
		_, err := w.Build(t.Context(), b)
		must(t, err)
		replace := job{Replace: &quorum.Replacing{Old: "r2", New: w.file("d.raw", "raw")}}
		if w.verb(replace, "DISKHOOK_FAILPOINT="+point+"=kill") == nil {
			t.Fatal("it was not killed")
		}
		return w
	}
	gone := func(w *world) {
		w.Helper()
		if _, err := os.Stat(w.path("d.raw.quorum")); err == nil {
			w.Error("the mark of the image that was given up stays")
		}
		w.tidy()
	}
	for _, point := range []string{"quorum.made.r4", "quorum.written", "quorum.known"} {
		t.Run(point, func(t *testing.T) {
			w := begun(t, 3, point)
			id, err := w.Replace(t.Context(), "db", quorum.Replacing{Old: "r2", New: w.file("e.raw", "raw")})
			if must(t, err); id != "r5" {
				t.Errorf("id %s", id)
			}
			gone(w)
			w.holds(w.flat)
			w.opens("r1", "r5", "r3")
		})
	}
	t.Run("resync", func(t *testing.T) {
		w := begun(t, 3, "quorum.known")
		_, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
		must(t, err)
		gone(w)
		w.holds(w.flat)
		w.opens("r1", "r2", "r3")
	})
	t.Run("resync of two", func(t *testing.T) {
		w := begun(t, 2, "quorum.known")
		_, err := w.Resync(t.Context(), "db", quorum.Resyncing{From: "r1"})
		must(t, err)
		gone(w)
		w.holds(w.flat)
		w.opens("r1", "r2")
	})
}

// What happened to a set is not told of the next one of that name.
func TestEventsGoWithTheSet(t *testing.T) {
	w := built(t)
	w.spoil("r2", "0x22", "1M", "64k")
	_, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	w.noted(quorum.EventResynced, "r2", "")
	must(t, w.Remove(t.Context(), "db", true))
	if events, err := w.Events("db"); err != nil || len(events) > 0 {
		t.Errorf("%+v, %v", events, err)
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

// A verb holds the set's lock, and every other but status refuses, as does a start.
func TestVerbsRefuseASetInUse(t *testing.T) {
	w := built(t)
	held, err := w.Lock("db")
	must(t, err)
	names := []string{"replica set db: `quorum.test ", fmt.Sprintf(" works on it (process %d)", os.Getpid()), fmt.Sprintf("`kill %d`", os.Getpid())}
	for name, j := range map[string]job{
		"build":   {Build: &quorum.Building{Name: "db"}},
		"resync":  {Resync: &quorum.Resyncing{}},
		"replace": {Replace: &quorum.Replacing{Old: "r1"}},
		"remove":  {Remove: new(bool)},
	} {
		t.Run(name, func(t *testing.T) {
			w.refused(j.run(t.Context(), w.Service), failure.Conflict, names...)
		})
	}
	_, err = w.Verify(t.Context(), "db", nil)
	w.refused(err, failure.Conflict, names...)
	began := time.Now()
	_, err = w.Start(t.Context(), "db", vda, time.Hour)
	w.refused(err, failure.Conflict, names...)
	w.refused(w.Open(t.Context(), "db", vda, time.Hour), failure.Conflict, names...)
	if _, err := w.Claim("db"); failure.KindOf(err) != failure.NotFound || time.Since(began) > 5*time.Minute {
		t.Errorf("refused after %v; claim: %v", time.Since(began), err)
	}
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
