// SPDX-License-Identifier: Apache-2.0

package localdisk

import (
	"slices"
	"testing"

	"diskhook/storage/host"
)

// The unit of a copy asks for the disk as its threads do.
func TestUnitHasTheClassOfTheCopy(t *testing.T) {
	for class, want := range map[string]string{
		"idle": "IOSchedulingClass=idle", "best-effort": "IOSchedulingClass=best-effort", "": "IOSchedulingClass=best-effort",
	} {
		s := &Service{Config: host.Config{Local: host.Local{IOClass: class}}}
		if got := s.process(Disk{Domain: "d", Target: "vda"}, "id").Properties; !slices.Contains(got, want) {
			t.Errorf("%q: %v", class, got)
		}
		if got := string(s.ioClass()); got != class {
			t.Errorf("%q: the threads have %q", class, got)
		}
	}
}
