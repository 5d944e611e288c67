// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"slices"
	"testing"

	"diskhook/storage/failure"
)

// A domain that went over to its raw copy may have written there before its host
// noted that: its definition says so, and nothing is taken back.
func TestRawCopyThatTheDomainWentOverToStays(t *testing.T) {
	e := defined(t)
	e.on = func(verb string) error {
		if slices.Contains(e.answered[:len(e.answered)-1], VerbBlockJobEnd) {
			return failure.New(failure.Temporary, "libvirt did not answer in time")
		}
		return nil
	}
	if err := e.toRaw(); err == nil {
		t.Fatal("it did not notice")
	}
	e.on = nil
	keep := func() error { return e.s.KeepOverlay(t.Context(), testUUID, "vda") }
	refusedWith(t, keep(), failure.Conflict, "its domain runs, and may have gone over to it", "shut the domain down")
	e.dies()
	refusedWith(t, keep(), failure.Precondition, "its raw copy stays: it is the disk by now", "`diskhook local settle --raw vm vda`")
	if err := e.toRaw(); err != nil {
		t.Fatal(err)
	}
	e.isRaw()
	if format, err := e.starts(); err != nil || format != "raw" {
		t.Fatalf("%s, %v", format, err)
	}
	e.finds("raw", true)
}
