// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

// inbox is a Watcher that tells what a test puts into the folder heard.
type inbox struct{ root string }

func (b inbox) dir() string { return filepath.Join(b.root, "heard") }

func (b inbox) Watch(ctx context.Context, use quorum.Use, told func(quorum.Heard)) error {
	if use.Domain != vda.Domain || use.Target != vda.Target {
		return failure.New(failure.Precondition, "unexpected use %s", use)
	}
	if _, err := os.Stat(b.dir()); err != nil {
		return failure.Wrap(failure.Precondition, err)
	}
	for told(quorum.Heard{Listening: true}); ; time.Sleep(20 * time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text, err := os.ReadFile(filepath.Join(b.dir(), "next"))
		if err != nil {
			continue
		}
		var all []quorum.Heard
		if err := errors.Join(json.Unmarshal(text, &all), os.Remove(filepath.Join(b.dir(), "next"))); err != nil {
			return err
		}
		for _, h := range all {
			told(h)
		}
	}
}

// hears has the set's process hear of these.
func (w *world) hears(all ...quorum.Heard) {
	w.Helper()
	text, err := json.Marshal(all)
	must(w.T, err)
	next := filepath.Join(inbox{w.root}.dir(), "next")
	must(w.T, os.WriteFile(next+".new", text, 0o600))
	must(w.T, os.Rename(next+".new", next))
}

// opened has the replicas ready for a guest whose QEMU opens them.
func (w *world) opened() quorum.Live {
	w.Helper()
	w.Cleanup(func() { _ = w.Stop(context.Background(), "db", vda) })
	must(w.T, w.Open(w.Context(), "db", vda, time.Minute))
	return w.until("heard", func(l quorum.Live) bool { return l.Heard })
}

// suspects are the reasons by replica that the status has.
func (w *world) suspects() map[string]quorum.Reason {
	w.Helper()
	st, err := w.Status(w.Context(), "db")
	must(w.T, err)
	all := map[string]quorum.Reason{}
	for _, r := range st.Replicas {
		if r.Doubt != nil {
			all[r.ID] = r.Doubt.Reason
		}
		if !r.Votes {
			w.Errorf("%s does not vote: %s", r.ID, r.Why)
		}
	}
	return all
}

// TestInlineReports: what QEMU reports is remembered once each, is still known
// to a process that comes after one that was killed, which leaves the replicas
// alone, and ends when they are made equal.
func TestInlineReports(t *testing.T) {
	w := built(t)
	must(t, os.Mkdir(inbox{w.root}.dir(), 0o700))
	first := w.opened()
	bad := func(child int, kind, text string) quorum.Heard {
		return quorum.Heard{Event: quorum.ReportBad, Child: child, Report: quorum.Report{Type: kind, Error: text, Sector: 8, Sectors: 2}}
	}
	w.hears(bad(2, "read", ""), bad(2, "read", ""), bad(3, "read", ""), bad(-1, "read", ""), bad(0, "write", "No space left on device\nat all"),
		quorum.Heard{Why: "libvirt went"}, quorum.Heard{Listening: true}, quorum.Heard{Event: quorum.ReportFailure})
	w.until("failed", func(l quorum.Live) bool { return l.Failures == 1 && l.Heard })
	want := map[string]quorum.Reason{"r1": quorum.WriteError, "r3": quorum.Mismatch}
	if diff := cmp.Diff(want, w.suspects()); diff != "" {
		t.Error(diff)
	}
	w.untilState("r1", quorum.Suspected, string(quorum.WriteError))
	w.untilState("r2", quorum.Voting, "")
	w.untilState("r3", quorum.Suspected, string(quorum.Mismatch))
	var told []string
	events, err := w.Events("db")
	must(t, err)
	for _, e := range events {
		told = append(told, e.Event+" "+e.Replica)
		if e.Event == quorum.EventBad && (e.Offset != 4096 || e.Length != 1024 || len(e.Text) > 0 && e.Text != "No space left on device at all") {
			t.Errorf("%+v", e)
		}
	}
	if diff := cmp.Diff([]string{"served ", "bad r3", "suspect r3", "bad r1", "suspect r1", "unheard ", "failure "}, told); diff != "" {
		t.Error(diff)
	}

	// The guest goes on while its set's process is killed. Until another comes,
	// verbs are kept away by the locks of its QEMU; here it has none.
	must(t, syscall.Kill(first.PID, syscall.SIGKILL))
	w.awaitFree()
	w.spoil("r2", "5", "1M", "64k")
	again := w.opened()
	if again.PID == first.PID || again.Generation != first.Generation {
		t.Errorf("%+v after %+v", again, first)
	}
	w.untilState("r3", quorum.Suspected, string(quorum.Mismatch))
	w.noted(quorum.EventUnheard, "", "")
	if v, err := w.Verify(t.Context(), "db", nil); !errors.Is(err, failure.Conflict) {
		t.Errorf("a verb works on it: %+v, %v", v, err)
	}
	w.stop()
	if diff := cmp.Diff(want, w.suspects()); diff != "" {
		t.Error(diff)
	}
	if v, err := w.Verify(t.Context(), "db", nil); err != nil || len(v.Differs["r2"]) != 1 {
		t.Errorf("replicas were written to under a guest: %+v, %v", v, err)
	}

	next := w.opened()
	if next.Generation <= again.Generation || len(w.suspects()) > 0 {
		t.Errorf("%+v, suspects %v", next, w.suspects())
	}
	w.stop()
	w.equalReplicas()
}

// Two replicas need no third as long as they are equal.
func TestInlineOfTwo(t *testing.T) {
	w := newWorld(t)
	b := w.building()
	b.Replicas = b.Replicas[:2]
	_, err := w.Build(t.Context(), b)
	must(t, err)
	for range 2 {
		must(t, w.Open(t.Context(), "db", vda, time.Minute))
		w.stop()
	}
	w.spoil("r2", "5", "1M", "64k")
	w.refused(w.Open(t.Context(), "db", vda, time.Minute), failure.Problems, "no majority in 65536 bytes from byte 1048576 on", "diskhook quorum resync --from ID db")
}

// A replica that is away keeps the others from being counted anew.
func TestInlineNeedsAll(t *testing.T) {
	w := built(t)
	must(t, os.Rename(w.path("c.raw"), w.path("c.away")))
	before := w.decision()
	w.refused(w.Open(t.Context(), "db", vda, time.Minute), failure.Precondition, "lower=inline needs all of its replicas, and r3 is left out", "diskhook quorum replace db r3 REPLICA")
	if after := w.decision(); after.Next != before.Next || after.Unclean {
		t.Errorf("the refused start raised a generation: %+v, then %+v", before, after)
	}
	if _, err := w.Claim("db"); !errors.Is(err, failure.NotFound) {
		t.Errorf("its claim stays: %v", err)
	}
}

// TestInlineUnheard: that nobody can listen keeps no set from being used.
func TestInlineUnheard(t *testing.T) {
	w := built(t)
	w.Cleanup(func() { _ = w.Stop(context.Background(), "db", vda) })
	must(t, w.Open(t.Context(), "db", vda, time.Minute))
	live, err := w.Live("db")
	if err != nil || live.State != quorum.Serving || live.Heard {
		t.Errorf("%+v, %v", live, err)
	}
	w.stop()
}
