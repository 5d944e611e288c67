// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package quorum_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
)

func TestBuild(t *testing.T) {
	w := built(t)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
	if d := w.decision(); d.Unclean || d.Base.Number != 1 {
		t.Errorf("decision %+v", d)
	}
	set, err := w.Build(t.Context(), w.building())
	must(t, err)
	if set.Intent != nil || set.NextID != 4 {
		t.Errorf("the same call again: %+v", set)
	}
}

func TestVerifyNamesTheReplicaAndTheRanges(t *testing.T) {
	w := built(t)
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	if !v.Equal() || v.Read >= diskSize {
		t.Fatalf("fresh: %+v", v)
	}
	w.spoil("r2", "0x11", "512k", "64k")
	w.spoil("r2", "0x12", "7M", "4k")
	v, err = w.Verify(t.Context(), "db", nil)
	must(t, err)
	want := map[string][]quorum.Range{"r2": {{Offset: 512 << 10, Length: 64 << 10}, {Offset: 7 << 20, Length: 4 << 10}}}
	if diff := cmp.Diff(want, v.Differs); diff != "" || len(v.NoMajority) > 0 {
		t.Errorf("%s%v", diff, v.NoMajority)
	}
	w.refused(v.Err(), failure.Problems, "r2 differs in 69632 bytes from byte 524288 on", "diskhook quorum resync db")
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{})
	must(t, err)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
}

func TestNothingIsRepairedWithoutAMajority(t *testing.T) {
	w := built(t)
	w.spoil("r1", "0x11", "1M", "4k")
	w.spoil("r2", "0x22", "1M", "4k")
	w.spoil("r2", "0x22", "5M", "4k")
	_, err := w.Resync(t.Context(), "db", quorum.Resyncing{})
	w.refused(err, failure.Problems, "no majority in 4096 bytes from byte 1048576 on", "resync db --from ID")
	w.same(w.replica("r3"), w.flat)
	v, err := w.Verify(t.Context(), "db", nil)
	must(t, err)
	if len(v.Differs["r2"]) != 1 || len(v.NoMajority) != 1 {
		t.Errorf("something was repaired: %+v", v)
	}
	_, err = w.Resync(t.Context(), "db", quorum.Resyncing{From: "r3"})
	must(t, err)
	w.holds(w.flat)
	w.opens("r1", "r2", "r3")
}
