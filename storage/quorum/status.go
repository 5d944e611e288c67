// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"time"

	"diskhook/storage/failure"
)

// Status is what is known of a set without asking whoever serves it.
type Status struct {
	Set Set `json:"set"`
	// Served: somebody holds the set's lock, a daemon or a verb.
	Served   bool     `json:"served"`
	Decision Decision `json:"decision"`
	// Veto is why it would not start, Hint the way out.
	Veto     string          `json:"veto,omitempty"`
	Hint     string          `json:"hint,omitempty"`
	Replicas []ReplicaStatus `json:"replicas"`
}

// ReplicaStatus is one replica.
type ReplicaStatus struct {
	ID    string `json:"id"`
	Path  string `json:"path"`
	Votes bool   `json:"votes"`
	Why   string `json:"why,omitempty"` // it does not
	Stale bool   `json:"stale"`         // a resync brings it up to date
	// Doubt is why it is suspect though it votes; nil: it is not.
	Doubt *Doubt `json:"doubt,omitempty"`
	Mark  *Mark  `json:"mark,omitempty"`
	// Out is since when it has not voted; zero where it did in the newest
	// generation that this host knows.
	Out time.Time `json:"out,omitzero"`
}

// Status looks at a set and changes nothing. A replica that does not answer costs
// the set's hang timeout, however many there are.
func (s *Service) Status(ctx context.Context, name string) (Status, error) {
	set, err := s.Load(name)
	if err != nil {
		return Status{}, err
	}
	st := Status{Set: set}
	if st.Served, err = s.Locked(name); err != nil {
		return Status{}, err
	}
	d, observed, err := s.Foresee(ctx, set)
	if err != nil {
		return Status{}, err
	}
	st.Decision = d
	if d.Veto != nil {
		st.Veto, st.Hint = failure.OneLine(d.Veto.Error()), failure.HintOf(d.Veto)
	}
	known, err := s.knowledge(set)
	if err != nil {
		return Status{}, err
	}
	left := map[string]LeftOut{}
	for _, l := range d.Left {
		left[l.ID] = l
	}
	for i, r := range set.Replicas {
		l, out := left[r.ID]
		st.Replicas = append(st.Replicas, ReplicaStatus{
			ID: r.ID, Path: r.Top().String(), Votes: !out, Why: l.Why, Stale: l.Stale, Doubt: observed[i].Doubt, Mark: observed[i].Mark,
			Out: known.Out[r.ID],
		})
	}
	return st, nil
}
