// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"slices"
	"testing"
	"time"

	"diskhook/storage/quorum"
)

// A replica that was away, and takes no writes when it is brought up to date, is
// brought up to date once it takes them, though nobody asks.
func TestResyncIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	l, injects := w.remote("remote")
	b.Replicas[2], b.Overwrite = l, true
	_, err := w.Build(t.Context(), b)
	must(t, err)
	set, err := w.Load("db")
	must(t, err)
	d := w.decision()
	g, err := w.Raise(t.Context(), set, d.Base, d.Next, []string{"r1", "r2"})
	must(t, err)
	must(t, w.MarkClean(t.Context(), set, g))
	w.opens("r1", "r2")

	injects("iotype=write")
	w.start()
	w.works("write -P 5 1M 64k", "flush")
	failed := func(l quorum.Live) bool {
		return slices.ContainsFunc(l.Replicas, func(r quorum.LiveReplica) bool {
			return r.ID == "r3" && r.State == quorum.OutOfSet && time.Until(r.Again) > 0
		})
	}
	w.until("failed", failed)
	w.noted(quorum.EventNotSynced, "r3", "")
	w.works("write -P 6 2M 64k", "read -P 5 1M 64k")
	injects("iotype=discard") // which nobody sends
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		live, err := w.Live("db")
		must(t, err)
		if live.Replicas[2].State == quorum.Voting {
			break
		}
		if time.Since(began) > 3*time.Minute {
			t.Fatalf("it is not tried again: %+v", live)
		}
	}
	w.noted(quorum.EventResynced, "r3", "")
	w.works("write -P 7 3M 64k", "read -P 6 2M 64k")
	w.stop()
	w.opens("r1", "r2", "r3")
	v, err := w.Verify(t.Context(), "db", nil)
	if err != nil || !v.Equal() {
		t.Errorf("%+v, %v", v, err)
	}
}
