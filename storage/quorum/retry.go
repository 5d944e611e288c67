// SPDX-License-Identifier: Apache-2.0

package quorum

import "time"

// retryMost is the longest wait between two tries: each may write a whole disk.
const retryMost = time.Hour

// retries are the replicas whose resync failed, and when each is tried again. It
// waits twice as long each time. One goroutine has it.
type retries struct {
	first time.Duration
	next  map[string]retry // by replica
}

type retry struct {
	at   time.Time
	wait time.Duration
}

// newRetries waits for first after the first failure of a replica.
func newRetries(first time.Duration) *retries {
	return &retries{first: min(first, retryMost), next: map[string]retry{}}
}

// failed notes that a try ended now, and returns when the next one is.
func (r *retries) failed(id string, now time.Time) time.Time {
	wait := r.first
	if last, again := r.next[id]; again {
		wait = min(2*last.wait, retryMost)
	}
	r.next[id] = retry{now.Add(wait), wait}
	return r.next[id].at
}

// forget ends the tries of a replica.
func (r *retries) forget(id string) { delete(r.next, id) }

// waits says that a replica is tried again.
func (r *retries) waits(id string) bool { _, is := r.next[id]; return is }

// due tells of the replica whose turn comes next, when it is; stop has to be
// called once nobody waits for that any more.
func (r *retries) due(now time.Time) (<-chan string, func()) {
	var soonest string
	for id, n := range r.next {
		if soonest == "" || n.at.Before(r.next[soonest].at) {
			soonest = id
		}
	}
	if soonest == "" {
		return nil, func() {}
	}
	told := make(chan string, 1)
	timer := time.AfterFunc(r.next[soonest].at.Sub(now), func() { told <- soonest })
	return told, func() { timer.Stop() }
}
