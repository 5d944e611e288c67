// SPDX-License-Identifier: Apache-2.0

package progress_test

import (
	"path/filepath"
	"testing"

	"diskhook/storage/progress"
)

func TestStatusTellsWhatHappened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "domain", "vda.json")
	w := progress.NewWriter(path, "job-1", "vm1", "disk vda")
	expect := func(state progress.State, percent int) progress.Status {
		t.Helper()
		s, err := progress.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if s.State != state || s.Percent() != percent || s.Job != "job-1" || s.PID == 0 {
			t.Errorf("status %+v, want %s at %d %%", s, state, percent)
		}
		return s
	}
	expect(progress.Starting, 0)
	w.Set(progress.Locked)
	w.Set(progress.Copying)
	w.Advance(1000, 1000)
	expect(progress.Copying, 100)
	w.Fail("disk vda: no space", "no_space", "extend it")
	s := expect(progress.Failed, 100)
	if s.Error != "disk vda: no space" || s.Code != "no_space" || s.Hint != "extend it" || !s.State.Final() {
		t.Errorf("status %+v", s)
	}
}

func TestPercentOfOddSizes(t *testing.T) {
	for _, tc := range []struct {
		done, total int64
		want        int
	}{{0, 0, 0}, {0, 5, 0}, {5, 5, 100}, {1, 3, 33}, {1 << 62, 1 << 62, 100}, {999, 1000, 99}, {7, 5, 100}} {
		if got := (progress.Status{Done: tc.done, Total: tc.total}).Percent(); got != tc.want {
			t.Errorf("%d of %d: %d %%, want %d", tc.done, tc.total, got, tc.want)
		}
	}
}

// A status file that cannot be written stops nothing.
func TestUnwritableStatusIsIgnored(t *testing.T) {
	w := progress.NewWriter("/proc/no/such/status.json", "job", "vm1", "disk")
	w.Advance(1, 2)
	w.Set(progress.Ready)
}
