// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// recorder is a kind that writes down what is done with it. It waits for its
// partner to have begun, so that kinds which do not run side by side hang.
type recorder struct {
	Kind
	name    string
	begun   *sync.WaitGroup
	err     error
	panics  bool
	mu      *sync.Mutex
	actions *[]string
}

func (r recorder) Name() string { return r.name }

func (r recorder) did(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*r.actions = append(*r.actions, r.name+" "+what)
}

func (r recorder) Fulfil(context.Context, *Host, Domain, []Bound, time.Duration) ([]Placement, error) {
	r.begun.Done()
	r.begun.Wait()
	r.did("fulfil")
	if r.panics {
		panic("index out of range")
	}
	return []Placement{{Target: r.name}}, r.err
}

func (r recorder) Release(_ context.Context, _ *Host, _ Domain, _ []Bound, reason string) error {
	r.did("release" + reason)
	return nil
}

func TestKindsSideBySide(t *testing.T) {
	for name, c := range map[string]struct {
		err     error
		panics  bool
		actions []string
	}{
		"both succeed":   {nil, false, []string{"a fulfil", "b fulfil"}},
		"one fails":      {errors.New("no space"), false, []string{"a fulfil", "a release", "b fulfil"}},
		"one has a flaw": {nil, true, []string{"a fulfil", "a release", "b fulfil"}},
	} {
		t.Run(name, func(t *testing.T) {
			var begun sync.WaitGroup
			begun.Add(2)
			var actions []string
			var mu sync.Mutex
			a := recorder{name: "a", begun: &begun, mu: &mu, actions: &actions}
			b := a
			b.name, b.err, b.panics = "b", c.err, c.panics
			h := &Host{Log: slog.New(slog.DiscardHandler)}
			placed, err := h.fulfil(t.Context(), Domain{UUID: "u"}, []Kind{a, b}, nil, 0)
			slices.Sort(actions)
			if diff := cmp.Diff(c.actions, actions); diff != "" {
				t.Error(diff)
			}
			failed := c.err != nil || c.panics
			if (err != nil) != failed || (len(placed) == 2) == failed {
				t.Errorf("%v, %v", placed, err)
			}
			if c.panics && !strings.Contains(err.Error(), "kind b: a defect of diskhook") {
				t.Errorf("%v", err)
			}
		})
	}
}
