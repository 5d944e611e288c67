// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestSuspects goes through what a leader sees of one host, second by second.
func TestSuspects(t *testing.T) {
	began := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	type moment struct {
		at    int
		state state
		live  bool
		busy  bool
		retry int // not before this second
		want  string
		wait  int
	}
	for name, test := range map[string]struct {
		self, from int
		host       string
		moments    []moment
	}{
		"alive":                     {moments: []moment{{at: 0, state: joined, live: true}, {at: 100, state: joined, live: true}}},
		"silent for the grace time": {moments: []moment{{at: 0, state: joined, wait: 10}, {at: 9, state: joined, wait: 1}, {at: 10, state: joined, want: "wanted"}}},
		"back in time": {moments: []moment{
			{at: 0, state: joined, wait: 10}, {at: 5, state: joined, live: true}, {at: 11, state: joined, wait: 10}, {at: 21, state: joined, want: "wanted"},
		}},
		"left in order":               {moments: []moment{{at: 0, state: left}, {at: 100, state: left}}},
		"fenced already":              {moments: []moment{{at: 0, state: fenced}, {at: 100, state: fenced}}},
		"an unknown state":            {moments: []moment{{at: 0, state: "odd"}, {at: 100, state: "odd"}}},
		"marked by an earlier leader": {moments: []moment{{at: 0, state: fencing, wait: 10}, {at: 10, state: fencing, want: "wanted"}}},
		"marked, and back":            {moments: []moment{{at: 0, state: fencing, live: true, want: "back"}}},
		"marked, back, and asked about now": {moments: []moment{
			{at: 0, state: joined, wait: 10}, {at: 10, state: joined, want: "wanted"}, {at: 11, state: fencing, live: true, busy: true}, {at: 60, state: fencing, busy: true},
		}},
		"no evidence yet": {moments: []moment{
			{at: 0, state: joined, wait: 10}, {at: 10, state: joined, want: "wanted"}, {at: 11, state: fencing, retry: 30, wait: 19}, {at: 30, state: fencing, want: "wanted"},
		}},
		"we ourselves":               {host: "self", moments: []moment{{at: 0, state: joined}, {at: 100, state: joined}}},
		"we ourselves, marked":       {host: "self", moments: []moment{{at: 0, state: fencing, want: "back"}}},
		"all hosts have just booted": {from: 300, moments: []moment{{at: 0, state: joined, wait: 300}, {at: 299, state: joined, wait: 1}, {at: 300, state: joined, want: "wanted"}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSuspects("self", 10*time.Second, began.Add(time.Duration(test.from)*time.Second))
			host := test.host
			if host == "" {
				host = "other"
			}
			for _, m := range test.moments {
				v := view{hosts: map[string]known{host: {state: m.state}, "third": {state: joined}}, live: map[string]bool{host: m.live, "third": true}}
				if s.busy[host] = m.busy; m.retry > 0 {
					s.retry[host] = began.Add(time.Duration(m.retry) * time.Second)
				}
				wanted, back, wait := s.judge(began.Add(time.Duration(m.at)*time.Second), v)
				got := ""
				switch {
				case slices.Equal(wanted, []string{host}) && len(back) == 0:
					got = "wanted"
				case slices.Equal(back, []string{host}) && len(wanted) == 0:
					got = "back"
				case len(wanted)+len(back) > 0:
					t.Fatalf("second %d: wanted %q, back %q", m.at, wanted, back)
				}
				if diff := cmp.Diff([]any{m.want, time.Duration(m.wait) * time.Second}, []any{got, wait}); diff != "" {
					t.Errorf("second %d: %s", m.at, diff)
				}
			}
		})
	}
}
