// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// cutPower is what a power cut leaves of a set that is served: nobody cleans up,
// and /run is gone.
func (w *world) cutPower() {
	w.Helper()
	must(w.T, syscall.Kill(w.pid(), syscall.SIGSTOP))
	for _, pid := range w.daemons() {
		must(w.T, syscall.Kill(pid, syscall.SIGKILL))
	}
	must(w.T, syscall.Kill(w.pid(), syscall.SIGKILL))
	w.awaitFree()
	must(w.T, os.RemoveAll(w.path("run")))
}

// After a power cut the replicas differ in what was in flight, and one of them
// may have missed a lot. It is left out, the others are made equal sector by
// sector, then it is brought up to date.
func TestPowerCut(t *testing.T) {
	w := built(t)
	must(t, os.Rename(w.path("c.raw"), w.path("c.away")))
	w.start()
	w.works("write -P 9 0 1M", "flush")
	w.cutPower()
	must(t, os.Rename(w.path("c.away"), w.path("c.raw")))
	// Two of the newest generation, unclean: nobody can tell which is right.
	_, err := w.Start(t.Context(), "db", vda, 20*time.Second)
	w.refused(err, failure.Precondition, "not closed cleanly", "diskhook quorum resync db`")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r1"})
	must(t, err)
	w.equalReplicas()
}

// What a crash has torn apart, each replica in its own way, has a majority in
// each sector, though no two replicas are equal.
func TestTorn(t *testing.T) {
	w := served(t)
	w.works("write -P 1 2M 4k", "flush")
	w.cutPower()
	w.spoil("r1", "2", "2M", "4k")    // all of a write
	w.spoil("r2", "2", "2M", "2k")    // half of it
	w.spoil("r3", "3", "6M", "512")   // and another fault
	w.spoil("r1", "4", "2500k", "1k") // three versions: no majority
	w.spoil("r2", "5", "2500k", "1k")
	w.start()
	w.works("read -P 2 2M 2k", "read -P 1 2050k 2k", "write -P 7 4M 64k")
	live := w.until("equal", func(l quorum.Live) bool { return l.State == quorum.Serving && !l.Equalising && l.Done == l.Total })
	if live.Repaired != 4096+512 || live.Torn != 1024 {
		t.Errorf("%d bytes repaired, %d torn", live.Repaired, live.Torn)
	}
	w.noted(quorum.EventRepaired, "", "")
	w.noted(quorum.EventTorn, "", "")
	w.works("write -P 8 2500k 1k", "read -P 8 2500k 1k")
	w.stop()
	w.equalReplicas()
}

// Of four replicas, three of which have to agree, one is away when the power
// goes, with a write under way that one of the others has: the guest reads on.
func TestTornBelowTheThreshold(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	b.Replicas, b.Threshold = append(b.Replicas, w.file("d.raw", "raw")), 3
	_, err := w.Build(t.Context(), b)
	must(t, err)
	must(t, os.Rename(w.path("d.raw"), w.path("d.away")))
	w.start()
	w.works("write -P 1 2M 60k", "flush")
	w.cutPower()
	w.spoil("r1", "2", "2M", "60k")
	must(t, os.Rename(w.path("d.away"), w.path("d.raw")))
	w.start()
	w.works("read -P 1 2M 60k")
	w.untilState("r4", quorum.Voting, "")
	w.stop()
	w.equalReplicas()
}

// Of five replicas two miss a write that the other three take, and the power goes
// before anybody hears of it. Then two of those three are away: the two that lack
// the write outvote the third neither at the start nor in a resync.
func TestOutvotedByTwoThatLackAWrite(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	b.Replicas, b.Threshold = append(b.Replicas, w.file("d.raw", "raw"), w.file("e.raw", "raw")), 3
	_, err := w.Build(t.Context(), b)
	must(t, err)
	w.start()
	w.works("write -P 1 2M 60k", "flush")
	w.cutPower()
	for _, id := range []string{"r1", "r2"} {
		w.spoil(id, "0", "2M", "60k") // what it had before
	}
	for _, name := range []string{"d.raw", "e.raw"} {
		must(t, os.Rename(w.path(name), w.path(name+".away")))
	}
	w.start()
	if out, err := w.guest("read -P 1 2M 60k"); !strings.Contains(out, "Input/output error") {
		t.Errorf("the write is lost: %v, %s", err, out)
	}
	w.works("read -P 0x33 3M 192k", "write -P 5 4M 64k")
	w.until("looked at", func(l quorum.Live) bool { return !l.Equalising && l.Torn == 60<<10 })
	w.stop()
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Problems, "no majority in 61440 bytes from byte 2097152 on", "diskhook quorum resync --from ID db")
	for _, name := range []string{"d.raw", "e.raw"} {
		must(t, os.Rename(w.path(name+".away"), w.path(name)))
	}
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r3"})
	must(t, err)
	w.start()
	w.works("read -P 1 2M 60k", "read -P 5 4M 64k")
	w.stop()
	w.equalReplicas()
}

// A voter that cannot be read, and that the others are too few without, keeps them
// from being made equal. Who asks for another replica to be brought up to date then
// is told so, and does not wait.
func TestNotMadeEqual(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	l, injects := w.remote("remote")
	b.Replicas, b.Threshold, b.Overwrite = append(b.Replicas[:2], l, w.file("d.raw", "raw"), w.file("e.raw", "raw")), 3, true
	_, err := w.Build(t.Context(), b)
	must(t, err)
	set, err := w.Load("db")
	must(t, err)
	d := w.decision()
	_, err = w.Raise(t.Context(), set, d.Base, d.Next, d.Open) // as a start does
	must(t, err)
	for _, name := range []string{"d.raw", "e.raw"} {
		must(t, os.Rename(w.path(name), w.path(name+".away")))
	}
	injects("iotype=read")
	w.start()
	w.until("suspect", func(l quorum.Live) bool { return !l.Equalising && l.Replicas[2].State == quorum.Suspected })
	must(t, os.Rename(w.path("d.raw.away"), w.path("d.raw")))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w.refused(w.ResyncServed(ctx, "db", "r4", nil), failure.Precondition, "those that vote could not be made equal", "2 of the replicas can be read, 3 are needed", "shut the guest down")
}
