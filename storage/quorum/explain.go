// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
)

// What verbs would do, for dry runs. Each refuses what its verb refuses before
// it changes anything, and has no steps where nothing is left to do.

// ExplainBuild are the steps of Build.
func (s *Service) ExplainBuild(ctx context.Context, b Building) ([]string, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	set, err := s.Load(b.Name)
	switch {
	case err == nil:
		if set, err = s.resume(ctx, set, b); err != nil || set.Intent == nil {
			return nil, err
		}
	case errors.Is(err, failure.NotFound):
		if set, err = s.plan(ctx, b); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	if err := s.free(set.Name); err != nil {
		return nil, err
	}
	steps := []string{"write " + definitionPath(s.Layout, set.Name)}
	for _, r := range set.Replicas {
		what := fmt.Sprintf("fill %s with %d bytes of zeros", r, set.Size)
		switch {
		case b.Adopt:
			what = fmt.Sprintf("compare %s with the others", r)
		case len(b.From) > 0:
			what = fmt.Sprintf("copy %s to %s", b.From[0].Path, r)
		}
		steps = append(steps, what)
	}
	return append(steps, "mark all replicas with generation 1"), nil
}

// ExplainReplace are the steps of Replace.
func (s *Service) ExplainReplace(ctx context.Context, name string, o Replacing) ([]string, error) {
	set, err := s.Load(name)
	if err != nil {
		return nil, err
	}
	if _, done := replaced(set, o); done {
		return nil, nil
	}
	if err := errors.Join(refuseWhile(set, verbReplace), s.free(name)); err != nil {
		return nil, err
	}
	if !set.Intent.replaces(o) {
		set.Intent = nil
		if set, err = s.planReplace(ctx, set, o); err != nil {
			return nil, err
		}
	}
	old, _ := set.Replica(set.Intent.Replica)
	return []string{
		fmt.Sprintf("write what the majority has to %s", set.Intent.With),
		fmt.Sprintf("mark a new generation on all but %s", old),
		fmt.Sprintf("write %s without %s, and remove its mark", definitionPath(s.Layout, name), old.ID),
	}, nil
}

// ExplainResync reads all replicas, as Resync would.
func (s *Service) ExplainResync(ctx context.Context, name string, o Resyncing) ([]string, error) {
	set, err := s.Load(name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(refuseWhile(set, verbResync, verbReplace), afterOther(set, o)); err != nil {
		return nil, err
	}
	if o.From != "" {
		r, ok := set.Replica(o.From)
		if !ok {
			return nil, noReplica(set, o.From)
		}
		if err := s.free(name); err != nil {
			return nil, err
		}
		return []string{fmt.Sprintf("write what %s has to all others where they differ", r), "mark a new generation"}, nil
	}
	d, observed, err := s.Decide(ctx, set)
	if err == nil {
		err = mayResync(set, d, o, roles(set, d, observed, ""))
	}
	if err != nil {
		return nil, err
	}
	v, err := s.Verify(ctx, name, o.Progress)
	if err != nil {
		return nil, err
	}
	if len(v.NoMajority) > 0 {
		return nil, v.Err()
	}
	var steps []string
	for _, r := range set.Replicas {
		if differs := v.Differs[r.ID]; len(differs) > 0 {
			steps = append(steps, fmt.Sprintf("write %d bytes to %s", total(differs), r))
		}
	}
	absent := func(l LeftOut) bool { _, is := v.Missing[l.ID]; return is }
	if len(steps) > 0 || d.Unclean || set.Intent != nil || slices.ContainsFunc(d.Left, func(l LeftOut) bool { return !absent(l) }) {
		steps = append(steps, "mark a new generation")
	}
	if len(steps) == 0 {
		return nil, left(set, v)
	}
	return steps, nil
}

// free refuses a set that somebody uses.
func (s *Service) free(name string) error {
	locked, err := s.Locked(name)
	if err != nil || !locked {
		return err
	}
	return s.inUse(name)
}
