// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"diskhook/storage/host"
)

// What a vote decides makes all equal where a majority is, is held by as many as
// are needed, and touches nothing else.
func TestVoteProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, sectors := rapid.IntRange(1, 5).Draw(t, "replicas"), rapid.IntRange(1, 6).Draw(t, "sectors")
		need := rapid.IntRange(1, n).Draw(t, "need")
		views := map[string][]byte{}
		for i := range n {
			var content []byte
			for range sectors {
				content = append(content, bytes.Repeat([]byte{byte(rapid.IntRange(0, 2).Draw(t, "version"))}, sector)...)
			}
			views[fmt.Sprintf("r%d", i+1)] = content
		}
		differ, outvoted := vote(views, need)
		decided := map[int]piece{}
		for _, p := range differ {
			for at := p.at; at < p.at+p.length; at += sector {
				decided[at] = p
			}
		}
		bad := map[string]bool{}
		for at := 0; at < sectors*sector; at += sector {
			count := map[byte]int{}
			for _, v := range views {
				count[v[at]]++
			}
			p, found := decided[at]
			if found == (len(count) == 1) && n >= need {
				t.Fatalf("sector at %d: differs %v, versions %v", at, found, count)
			}
			if !found || p.data == nil {
				continue
			}
			winner := p.data[at-p.at]
			if count[winner] < need {
				t.Fatalf("%d votes, %d needed", count[winner], need)
			}
			for version, votes := range count {
				if version != winner && votes >= count[winner] {
					t.Fatalf("%d lost with %d votes against %d", version, votes, count[winner])
				}
			}
			for id, v := range views {
				bad[id] = bad[id] || v[at] != winner
			}
		}
		for _, id := range outvoted {
			if !bad[id] {
				t.Fatalf("%s was never outvoted", id)
			}
			delete(bad, id)
		}
		for id, was := range bad {
			if was {
				t.Fatalf("%s was outvoted, and is not named", id)
			}
		}
	})
}

// The log is bounded, keeps what is new, and outlives a line that was cut short.
func TestEventLog(t *testing.T) {
	s := &Service{Layout: host.Layout{Root: t.TempDir()}}
	if events, err := s.Events("db"); err != nil || events != nil {
		t.Errorf("%v, %v", events, err)
	}
	first := Event{Event: EventBad, Replica: "r3", Reason: Mismatch, Offset: 512, Length: 1024}
	if err := s.record("db", first); err != nil {
		t.Fatal(err)
	}
	path := s.eventsPath("db")
	b, err := os.ReadFile(path)
	if err != nil || os.WriteFile(path, append(b, `{"event":"cut`...), 0o600) != nil {
		t.Fatal(err)
	}
	if err := s.record("db", Event{Event: EventSuspect, Replica: "r3"}); err != nil {
		t.Fatal(err)
	}
	events, err := s.Events("db")
	if err != nil || len(events) != 2 || events[1].Event != EventSuspect {
		t.Fatalf("%+v, %v", events, err)
	}
	events[0].Time = first.Time
	if diff := cmp.Diff(first, events[0]); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte(strings.Repeat("x", 1023)+"\n"), mostEvents>>10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.record("db", Event{Event: EventStopped}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 4096 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "db.events.1")); err != nil {
		t.Error(err)
	}
}
