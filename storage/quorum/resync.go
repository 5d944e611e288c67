// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// Resyncing is how to make the replicas of a set equal.
type Resyncing struct {
	// From is the replica to believe, whatever the others say; "" is the
	// majority of those with the newest generation.
	From     string
	Progress progress.Func `json:"-"`
}

// Resync makes all replicas equal that are there, of a set that nobody uses,
// and returns what it has found before. Blocks that differ are written, and
// nothing else. Then all that were made equal get a new, clean generation.
//
// Where the majority does not decide every block nothing is written at all:
// that is a failure.Problems, whose hint is to name the replica to believe.
//
// A replica that does not vote is marked before it is written to, and stays so
// until all is flushed; a voter is only given what the majority has, so that a
// crash leaves no block worse than it was.
func (s *Service) Resync(ctx context.Context, name string, o Resyncing) (Verification, error) {
	held, err := s.Lock(name)
	if err != nil {
		return Verification{}, err
	}
	defer held.Release()
	set, err := s.Load(name)
	if err != nil {
		return Verification{}, err
	}
	if err := refuseWhile(set, verbResync); err != nil {
		return Verification{}, err
	}
	if _, ok := set.Replica(o.From); o.From != "" && !ok {
		return Verification{}, noReplica(set, o.From)
	}
	if err := afterOther(set, o); err != nil {
		return Verification{}, err
	}
	s.Activate(ctx, set)
	return s.resync(ctx, set, o, held.File())
}

// afterOther refuses to go on otherwise than a resync began that did not end:
// what it believed is no longer believed by the others.
func afterOther(set Set, o Resyncing) error {
	if i := set.Intent; i == nil || i.Replica == "" || o.From != "" {
		return nil
	}
	err := failure.New(failure.Conflict, "%s: a resync from %s did not end", &set, set.Intent.Replica)
	return failure.Hint(err, "run `%s` again", again(set))
}

func (s *Service) resync(ctx context.Context, set Set, o Resyncing, held *os.File) (Verification, error) {
	d, observed, err := s.Decide(ctx, set)
	if err != nil {
		return Verification{}, err
	}
	voters, others, missing := roles(set, d, observed, o.From)
	if err := s.mayResync(set, d, o, voters, others); err != nil {
		return Verification{}, err
	}
	c, err := s.muster(ctx, set, voters, others, false, held)
	if err != nil {
		return Verification{}, err
	}
	defer c.dismiss()
	maps.Copy(c.missing, missing)
	if o.From != "" {
		c.need = 1
	}
	found, err := c.verify(ctx, nil)
	if err != nil {
		return found, err
	}
	if err := c.decided(found); err != nil {
		return found, err
	}
	set.Intent = &Intent{Verb: verbResync, Replica: o.From}
	if err := s.intend(set); err != nil {
		return found, err
	}
	if err := s.equalize(ctx, c, found, o.Progress); err != nil {
		return found, err
	}
	if _, err := s.raise(ctx, set, d.Base, d.Next, c.present(), true); err != nil {
		return found, err
	}
	set.Intent = nil
	if o.From != "" {
		set.Source = nil // whatever that replica held
	}
	return found, s.save(set)
}

// mayResync refuses what would believe a replica that nobody has named.
func (s *Service) mayResync(set Set, d Decision, o Resyncing, voters, others []string) error {
	switch {
	case o.From != "" && !slices.Contains(voters, o.From):
		i := slices.IndexFunc(d.Left, func(l LeftOut) bool { return l.ID == o.From })
		return failure.New(failure.Precondition, "%s: %s cannot be believed: %s", &set, o.From, d.Left[i].Why)
	case len(voters)+len(others) < set.Threshold:
		err := failure.New(failure.Precondition, "%s: %d of its replicas are there, %d are needed", &set, len(voters)+len(others), set.Threshold)
		return failure.Hint(err, "bring the others back, see `diskhook quorum status %s`", set.Name)
	case o.From != "":
		return nil
	case d.older(), len(voters) < majority(set, len(voters)):
		return d.Veto
	}
	return nil
}

// decided refuses what the majority does not decide, and a crew that lost those
// who did not open after all.
func (c *crew) decided(found Verification) error {
	if len(c.voters) < c.need {
		err := failure.New(failure.Problems, "%s: %d of its replicas could be opened, %d have to agree", &c.set, len(c.voters), c.need)
		return failure.Hint(err, "see `diskhook quorum status %s`; believe one of them with `diskhook quorum resync --from ID %s`", c.set.Name, c.set.Name)
	}
	if len(found.NoMajority) > 0 {
		return found.Err()
	}
	return nil
}

// intend makes an intent durable.
func (s *Service) intend(set Set) error {
	if err := s.save(set); err != nil {
		return err
	}
	return failpoint.Hit("quorum.intent")
}

// equalize writes what found says to whoever differs, and flushes.
func (s *Service) equalize(ctx context.Context, c *crew, found Verification, report progress.Func) error {
	for _, o := range c.others {
		if err := s.MarkSuspect(ctx, c.set, o.id, Unsynced); err != nil {
			return err
		}
	}
	w := c.walk()
	w.repair, w.progress = true, report
	if err := w.over(ctx, union(found.Differs)); err != nil {
		return fmt.Errorf("%s: %w", &c.set, err)
	}
	if err := failpoint.Hit("quorum.written"); err != nil {
		return err
	}
	if err := c.decided(c.found(w)); err != nil {
		return err // somebody writes to the images
	}
	return c.flush()
}

// union is the ranges of all lists, in order. It is never nil.
func union(lists map[string][]Range) []Range {
	all := slices.Concat(slices.Collect(maps.Values(lists))...)
	slices.SortFunc(all, func(a, b Range) int {
		if a.Offset < b.Offset {
			return -1
		}
		return 1
	})
	merged := []Range{}
	for _, r := range all {
		if last := len(merged) - 1; last >= 0 && r.Offset <= merged[last].end() {
			merged[last].Length = max(merged[last].end(), r.end()) - merged[last].Offset
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// older says that the newest replicas that are there are not the newest that
// this host has written.
func (d Decision) older() bool { return d.Veto != nil && errors.Is(d.Veto, errOlder) }
