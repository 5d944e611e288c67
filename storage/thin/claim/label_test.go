// SPDX-License-Identifier: Apache-2.0

package claim_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/claim"
)

func TestLabels(t *testing.T) {
	l := host.Layout{Root: t.TempDir()}
	s, err := claim.OpenLabels(l, "san")
	if err != nil {
		t.Fatal(err)
	}
	if label, err := s.Of("v"); label != nil || err != nil {
		t.Errorf("of nothing: %+v, %v", label, err)
	}
	id := uuid.New()
	for _, tags := range [][]string{{"UPDATING", "a"}, {"a"}} {
		if err := s.Set("v", claim.Label{Volume: id, Tags: tags}); err != nil {
			t.Fatal(err)
		}
		if label, err := s.Of("v"); err != nil || label.Volume != id || !slices.Equal(label.Tags, tags) {
			t.Errorf("%+v, %v", label, err)
		}
	}
	if err := s.Labelled("v"); !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "local remove") {
		t.Errorf("%v (%s)", err, failure.HintOf(err))
	}
	if names, err := s.Volumes(); err != nil || !slices.Equal(names, []string{"v"}) {
		t.Errorf("%q, %v", names, err)
	}
	for _, damage := range []string{"{", `{"schema":"diskhook.thin-label/v2","volume":"` + id.String() + `"}`, `{"schema":"diskhook.thin-label/v1"}`} {
		if err := os.WriteFile(s.Dir+"/v.json", []byte(damage), 0o644); err != nil {
			t.Fatal(err)
		}
		if label, err := s.Of("v"); label != nil || !errors.Is(err, failure.Problems) || failure.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v", damage, label, err)
		}
		if err := s.Labelled("v"); !errors.Is(err, failure.Problems) {
			t.Errorf("%s: %v", damage, err)
		}
	}
	for range 2 {
		if err := s.Drop("v"); err != nil {
			t.Error(err)
		}
	}
	if err := s.Labelled("v"); err != nil {
		t.Error(err)
	}
	if _, err := claim.OpenLabels(l, "../x"); !errors.Is(err, failure.Usage) {
		t.Error(err)
	}
	none := claim.Labels{}
	if err := errors.Join(none.Labelled("v"), none.Drop("v")); err != nil {
		t.Error(err)
	}
	if err := none.Set("v", claim.Label{Volume: id}); !errors.Is(err, failure.Precondition) {
		t.Error(err)
	}
}
