// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"slices"
	"time"
)

// suspects are the hosts that the leader does not hear of.
type suspects struct {
	self  string
	grace time.Duration
	from  time.Time            // nobody is asked about before
	since map[string]time.Time // silent; by the leader's own clock
	retry map[string]time.Time // not to be asked about before
	busy  map[string]bool      // evidence is being asked for
}

func newSuspects(self string, grace time.Duration, from time.Time) *suspects {
	return &suspects{self, grace, from, map[string]time.Time{}, map[string]time.Time{}, map[string]bool{}}
}

// judge says about which hosts evidence is wanted now, which are back after all
// though they were marked, and how long until it has to be asked again (0: until
// something changes).
func (s *suspects) judge(now time.Time, v view) (wanted, back []string, wait time.Duration) {
	for name, h := range v.hosts {
		if s.busy[name] {
			continue
		}
		if name == s.self || v.live[name] || h.state != joined && h.state != fencing {
			if h.state == fencing {
				back = append(back, name)
			}
			delete(s.since, name)
			delete(s.retry, name)
			continue
		}
		if _, silent := s.since[name]; !silent {
			s.since[name] = now
		}
		due := s.since[name].Add(s.grace)
		for _, other := range []time.Time{s.from, s.retry[name]} {
			if other.After(due) {
				due = other
			}
		}
		if left := due.Sub(now); left <= 0 {
			wanted = append(wanted, name)
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	slices.Sort(wanted)
	slices.Sort(back)
	return wanted, back, wait
}
