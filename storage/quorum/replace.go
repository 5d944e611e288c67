// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"fmt"
	"os"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// Replacing is what to exchange.
type Replacing struct {
	Old       string        // id
	New       Layer         // as of Building.Replicas
	Overwrite bool          // what lies in New may go
	Progress  progress.Func `json:"-"` // of New
}

// Replace takes a replica out of a set that nobody uses and brings in another,
// with a new id, which it returns. Its content is what the majority has; where
// there is none nothing is changed. The old image stays, without its mark.
// After a crash the same call goes on, and one with another image gives up the one
// that was begun, whose disk may be what broke.
func (s *Service) Replace(ctx context.Context, name string, o Replacing) (string, error) {
	held, set, err := s.hold(name)
	if err != nil {
		return "", err
	}
	defer held.Release()
	if err := refuseWhile(set, verbReplace); err != nil {
		return "", err
	}
	if id, done := replaced(set, o); done {
		return id, nil
	}
	begun := set.Intent
	if !begun.replaces(o) {
		set.Intent = nil
		if set, err = s.planReplace(ctx, set, o); err != nil {
			return "", err
		}
		if err := s.intend(set); err != nil {
			return "", err
		}
		s.abandon(ctx, set, begun)
	}
	if err := s.replace(ctx, set, o.Progress, held.File()); err != nil {
		return "", err
	}
	return set.Intent.With.ID, nil
}

// replaces says that it is the intent to do what o says.
func (i *Intent) replaces(o Replacing) bool {
	return i != nil && i.Verb == verbReplace && i.Replica == o.Old && i.With.Top().String() == o.New.String()
}

// abandon takes the mark off the image that a replace was to bring in, which is
// not done any more. Nobody asks for that mark; so that it stays is no failure.
func (s *Service) abandon(ctx context.Context, set Set, i *Intent) {
	if i == nil || i.Verb != verbReplace {
		return
	}
	if err := s.removeMark(ctx, set, *i.With); err != nil {
		s.Log.WarnContext(ctx, "the mark of a replica that was given up stays", "set", set.Name, "replica", i.With.ID, "err", err)
	}
}

// replaced says that this is done already.
func replaced(set Set, o Replacing) (string, bool) {
	if _, there := set.Replica(o.Old); there {
		return "", false
	}
	n, ok := idNumber(o.Old)
	for _, r := range set.Replicas {
		if ok && n < set.NextID && r.Top().String() == o.New.String() {
			return r.ID, true
		}
	}
	return "", false
}

// planReplace is the set with the intent. Once that is durable the id is spent,
// whatever becomes of it. Nothing is changed.
func (s *Service) planReplace(ctx context.Context, set Set, o Replacing) (Set, error) {
	if _, ok := set.Replica(o.Old); !ok {
		return set, noReplica(set, o.Old)
	}
	r, err := s.resolve(ctx, fmt.Sprintf("r%d", set.NextID), o.New, false)
	if err != nil {
		return set, err
	}
	set.NextID++
	set.Intent = &Intent{Verb: verbReplace, Replica: o.Old, With: &r}
	after := set.exchanged()
	if err := after.Check(); err != nil {
		return set, err
	}
	if err := s.admit(ctx, set.joining(), []Replica{r}, o.Overwrite); err != nil {
		return set, err
	}
	// Whether there is a majority is known before anything is made.
	d, _, err := s.Foresee(ctx, set)
	if err != nil {
		return set, err
	}
	if err := mayReplace(set, d); err != nil {
		return set, err
	}
	return set, s.roomToReplace(ctx, set, d.Open)
}

// joining is the set while both replicas are in it.
func (s Set) joining() Set {
	s.Replicas = append(slices.Clone(s.Replicas), *s.Intent.With)
	return s
}

// exchanged is the set when it is done.
func (s Set) exchanged() Set {
	s.Replicas = slices.Clone(s.Replicas)
	for i, r := range s.Replicas {
		if r.ID == s.Intent.Replica {
			s.Replicas[i] = *s.Intent.With
		}
	}
	s.Intent = nil
	return s
}

// mayReplace refuses what leaves too few that are known to be right.
func mayReplace(set Set, d Decision) error {
	if err := d.tooFew(set); err != nil {
		return err
	}
	stay := slices.DeleteFunc(slices.Clone(d.Open), func(id string) bool { return id == set.Intent.Replica })
	if len(stay)+1 >= set.Threshold {
		return nil
	}
	err := failure.New(failure.Precondition, "%s: without %s, %d of its replicas are left, and %d are needed with the new one", &set, set.Intent.Replica, len(stay), set.Threshold)
	return failure.Hint(err, "run `diskhook quorum resync %s` first", set.Name)
}

// replace does what the intent says.
func (s *Service) replace(ctx context.Context, set Set, report progress.Func, held *os.File) error {
	both, r := set.joining(), *set.Intent.With
	s.Activate(ctx, both)
	d, _, err := s.Decide(ctx, set)
	if err != nil {
		return err
	}
	if err := mayReplace(set, d); err != nil {
		return err
	}
	if err := s.begin(ctx, both, r, held); err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	c, err := s.muster(ctx, both, cast{voters: d.Open, others: []string{r.ID}}, false, held)
	if err != nil {
		return err
	}
	defer c.dismiss()
	if why, missing := c.missing[r.ID]; missing {
		return failure.New(failure.Precondition, "%s: %s", r, why)
	}
	found, err := c.agreed(ctx)
	if err != nil {
		return err
	}
	if err := c.equalize(ctx, found, report); err != nil {
		return err
	}
	with := slices.DeleteFunc(c.present(), func(id string) bool { return id == set.Intent.Replica })
	_, left, err := s.raise(ctx, both, d.Base, d.Next, with, true)
	if err != nil {
		return err
	}
	if why := left[r.ID]; why != nil {
		return failure.New(failure.Problems, "%s: it does not take its mark: %w", r, why)
	}
	return s.exchange(ctx, set)
}

// exchange writes the outcome, and takes the mark off the old replica, which
// may be gone for good.
func (s *Service) exchange(ctx context.Context, set Set) error {
	old, _ := set.Replica(set.Intent.Replica)
	if err := s.save(set.exchanged()); err != nil {
		return err
	}
	if err := failpoint.Hit("quorum.exchanged"); err != nil {
		return err
	}
	if err := s.removeMark(ctx, set, old); err != nil {
		s.Log.WarnContext(ctx, "the mark of a replaced replica stays", "set", set.Name, "replica", old.ID, "err", err)
	}
	return nil
}
