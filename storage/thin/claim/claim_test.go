// SPDX-License-Identifier: Apache-2.0

package claim_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/claim"
)

const vm = "11111111-1111-4111-8111-111111111111"

func TestStore(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	s, err := claim.Open(l, "san")
	if err != nil {
		t.Fatal(err)
	}
	if holder, err := s.Holder("v"); holder != "" || err != nil {
		t.Errorf("of nothing: %q, %v", holder, err)
	}
	if names, err := s.Volumes(); len(names) != 0 || err != nil {
		t.Errorf("of nothing: %q, %v", names, err)
	}
	id := uuid.New()
	for range 2 {
		if err := s.Set("v", claim.Claim{Volume: id, Domain: vm, Attached: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Set("a.json", claim.Claim{Volume: id, Domain: vm}); err != nil {
		t.Fatal(err)
	}
	if holder, err := s.Holder("v"); holder != vm || err != nil {
		t.Errorf("%q, %v", holder, err)
	}
	if names, err := s.Volumes(); !slices.Equal(names, []string{"a.json", "v"}) || err != nil {
		t.Errorf("%q, %v", names, err)
	}
	if clusters, err := claim.Clusters(l); !slices.Equal(clusters, []string{"san"}) || err != nil {
		t.Errorf("%q, %v", clusters, err)
	}
	last, err := s.Last("v")
	if err != nil || last.Volume != id || !last.Attached || last.Ended {
		t.Errorf("%+v, %v", last, err)
	}

	// In the next boot nobody has it, and what it was for is still known.
	next := s
	next.Boot = "another"
	if holder, err := next.Holder("v"); holder != "" || err != nil {
		t.Errorf("%q, %v", holder, err)
	}
	if last, err := next.Last("v"); err != nil || !last.Attached {
		t.Errorf("%+v, %v", last, err)
	}

	last.Ended = true
	if err := s.Set("v", *last); err != nil {
		t.Fatal(err)
	}
	if holder, err := s.Holder("v"); holder != "" || err != nil {
		t.Errorf("ended: %q, %v", holder, err)
	}
	for range 2 {
		if err := s.Drop("v"); err != nil {
			t.Error(err)
		}
	}
	if last, err := s.Last("v"); last != nil || err != nil {
		t.Errorf("%+v, %v", last, err)
	}
}

func TestIllegible(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	s, err := claim.Open(l, "san")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"schema":"diskhook.thin-claim/v9"}`, "[]"} {
		if err := os.WriteFile(filepath.Join(s.Dir, "v.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Holder("v"); failure.KindOf(err) != failure.Problems || failure.HintOf(err) == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := claim.Open(l, "../x"); failure.KindOf(err) != failure.Usage {
		t.Errorf("%v", err)
	}
}
