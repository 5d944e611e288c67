// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/atomicfile"
)

// Since when a replica does not vote is kept with the generation, through all
// that are raised without it, until one is raised with it. No log is asked.
func TestSinceWhenReplicasDoNotVote(t *testing.T) {
	s := newService(t)
	set := three()
	set.Replicas[1].Chain = set.Replicas[1].Chain[:1]
	set.Replicas[2].Chain = []Layer{{Type: File, Path: "/srv/c.raw", Format: "raw"}}
	if err := s.save(set); err != nil {
		t.Fatal(err)
	}
	raise := func(number uint64, with ...string) map[string]time.Time {
		t.Helper()
		if err := s.know(set, Generation{Number: number, Raise: newRaise(), With: with}); err != nil {
			t.Fatal(err)
		}
		st, err := s.Status(t.Context(), "db")
		if err != nil {
			t.Fatal(err)
		}
		if known, err := s.Known(set); err != nil || known.Number != number {
			t.Errorf("known: %v, %v", known, err)
		}
		out := map[string]time.Time{}
		for _, r := range st.Replicas {
			if !r.Out.IsZero() {
				out[r.ID] = r.Out
			}
		}
		return out
	}
	if out := raise(1, "r1", "r2", "r4"); len(out) != 0 {
		t.Errorf("all vote: %v", out)
	}
	began := time.Now().Add(-2 * time.Second)
	out := raise(2, "r1", "r4")
	if len(out) != 1 || out["r2"].Before(began) || out["r2"].After(time.Now()) {
		t.Fatalf("r2 was left out just now: %v", out)
	}
	k, err := s.knowledge(set)
	if err != nil {
		t.Fatal(err)
	}
	longAgo := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	k.Out["r2"] = longAgo
	if err := atomicfile.WriteJSON(s.knownPath(set), k, 0o600); err != nil {
		t.Fatal(err)
	}
	if out = raise(3, "r1"); len(out) != 2 || !out["r2"].Equal(longAgo) || out["r4"].Before(began) {
		t.Errorf("r4 joined it: %v", out)
	}
	if diff := cmp.Diff(map[string]time.Time{"r4": out["r4"]}, raise(4, "r1", "r2")); diff != "" {
		t.Errorf("r2 is back: %s", diff)
	}
}
