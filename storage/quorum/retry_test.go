// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"testing"
	"time"
)

// Each failure of a replica has it wait twice as long, up to a bound; the one
// whose turn is first comes first, and one that is forgotten begins anew.
func TestRetries(t *testing.T) {
	r := newRetries(10 * time.Minute)
	if c, stop := r.due(time.Now()); c != nil {
		stop()
		t.Error("nothing has failed")
	}
	now := time.Now()
	for i, want := range []time.Duration{10, 20, 40, 60, 60} {
		if at := r.failed("r3", now); at.Sub(now) != want*time.Minute {
			t.Errorf("after failure %d it waits %s, want %d min", i+1, at.Sub(now), want)
		}
	}
	r.failed("r2", now)
	c, stop := r.due(now.Add(10 * time.Minute))
	defer stop()
	select {
	case id := <-c:
		if id != "r2" {
			t.Errorf("%s comes first", id)
		}
	case <-time.After(time.Minute):
		t.Error("nobody comes")
	}
	r.forget("r3")
	if at := r.failed("r3", now); !r.waits("r3") || at.Sub(now) != 10*time.Minute {
		t.Errorf("it waits %s", at.Sub(now))
	}
	if newRetries(2*time.Hour).failed("r1", now).Sub(now) != retryMost {
		t.Error("it waits for longer than the bound")
	}
}
