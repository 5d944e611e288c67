// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"path/filepath"
	"testing"
	"time"
)

// What went by in the first second was not copied in it, mostly.
func TestRateIsNotThatOfTheFirstMoment(t *testing.T) {
	w := NewWriter(filepath.Join(t.TempDir(), "vda.json"), "job", "vm", "disk")
	began := time.Now()
	at := func(after time.Duration, done int64) Status {
		w.status.Done, w.status.Total = done, 1000
		w.measure(began.Add(after))
		return w.status
	}
	at(0, 0)
	if st := at(300*time.Millisecond, 600); st.Rate != 0 || st.ETA != -1 {
		t.Errorf("after 0.3 s: %d bytes/s, %d s left", st.Rate, st.ETA)
	}
	if st := at(4*time.Second, 800); st.Rate != 200 || st.ETA != 1 {
		t.Errorf("after 4 s: %d bytes/s, %d s left", st.Rate, st.ETA)
	}
}
