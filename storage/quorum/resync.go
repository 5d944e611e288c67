// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

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
// nothing else. Then all that were made equal get a new, clean generation, where
// anything was done at all.
//
// A replace that did not end is given up: the replica that was to go is in the
// set still.
//
// Replicas that are not there, or that take no mark, are left out: that is a
// failure.Problems once the others are equal.
//
// Where the majority does not decide every block nothing is written at all:
// that is a failure.Problems, whose hint is to name the replica to believe.
//
// A replica that does not vote is marked before it is written to, and stays so
// until all is flushed; a voter is only given what the majority has, so that a
// crash leaves no block worse than it was.
func (s *Service) Resync(ctx context.Context, name string, o Resyncing) (Verification, error) {
	held, set, err := s.hold(name)
	if err != nil {
		return Verification{}, err
	}
	defer held.Release()
	if err := refuseWhile(set, verbResync, verbReplace); err != nil {
		return Verification{}, err
	}
	if _, ok := set.Replica(o.From); o.From != "" && !ok {
		return Verification{}, noReplica(set, o.From)
	}
	if err := afterOther(set, o); err != nil {
		return Verification{}, err
	}
	s.Activate(ctx, set)
	found, err := s.resync(ctx, set, o, held.File())
	if now, unknown := s.Load(name); unknown == nil && now.Intent == nil {
		s.abandon(ctx, set, set.Intent)
	}
	return found, err
}

// afterOther refuses to go on otherwise than a resync began that did not end:
// what it believed is no longer believed by the others.
func afterOther(set Set, o Resyncing) error {
	if i := set.Intent; i == nil || i.Verb != verbResync || i.Replica == "" || o.From != "" {
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
	who := roles(set, d, observed, o.From)
	if err := mayResync(set, d, o, who); err != nil {
		return Verification{}, err
	}
	c, err := s.muster(ctx, set, who, false, held)
	if err != nil {
		return Verification{}, err
	}
	defer c.dismiss()
	if o.From != "" {
		c.need = 1
	}
	found, err := c.agreed(ctx)
	if err != nil {
		return found, err
	}
	if idle := o.From == "" && set.Intent == nil && d.Base.Clean; idle && len(c.others)+len(found.Differs) == 0 {
		return found, left(set, found)
	}
	set.Intent = &Intent{Verb: verbResync, Replica: o.From}
	if err := s.intend(set); err != nil {
		return found, err
	}
	for _, other := range c.others {
		if err := s.MarkSuspect(ctx, set, other.id, Unsynced); err != nil {
			return found, err
		}
	}
	if err := c.equalize(ctx, found, o.Progress); err != nil {
		return found, err
	}
	g, unmarked, err := s.raise(ctx, set, d.Base, d.Next, c.present(), true)
	if err != nil {
		return found, err
	}
	for id, why := range unmarked {
		found.Missing[id] = set.reason(id, why)
	}
	for _, id := range g.With {
		if len(found.Differs[id]) > 0 || !slices.Contains(d.Open, id) {
			s.note(set.Name, Event{Event: EventResynced, Replica: id, Generation: g.Number})
		}
	}
	set.Intent = nil
	if o.From != "" {
		set.Source = nil // whatever that replica held
	}
	if err := s.save(set); err != nil {
		return found, err
	}
	return found, left(set, found)
}

// left says who is not among those that were made equal.
func left(set Set, found Verification) error {
	out := slices.Sorted(maps.Keys(found.Missing))
	if len(out) == 0 {
		return nil
	}
	var words []string
	for _, id := range slices.Sorted(maps.Keys(found.Differs)) {
		if found.Missing[id] == "" {
			words = append(words, id+" was made equal")
		}
	}
	for _, id := range out {
		words = append(words, fmt.Sprintf("%s is left out: %s", id, found.Missing[id]))
	}
	err := failure.New(failure.Problems, "%s: %s", &set, strings.Join(words, "; "))
	return failure.Hint(err, "mend that, then run `diskhook quorum resync %s`; or replace it with `diskhook quorum replace %s %s NEW`", set.Name, set.Name, out[0])
}

// mayResync refuses what would believe a replica that nobody has named.
func mayResync(set Set, d Decision, o Resyncing, who cast) error {
	switch {
	case o.From != "" && !slices.Contains(who.voters, o.From):
		i := slices.IndexFunc(d.Left, func(l LeftOut) bool { return l.ID == o.From })
		return failure.New(failure.Precondition, "%s: %s cannot be believed: %s", &set, o.From, d.Left[i].Why)
	case len(who.voters)+len(who.others) < set.Threshold:
		err := failure.New(failure.Precondition, "%s: %d of its replicas are there, %d are needed", &set, len(who.voters)+len(who.others), set.Threshold)
		return failure.Hint(err, "bring the others back, see `diskhook quorum status %s`", set.Name)
	case o.From != "":
		return nil
	}
	return d.tooFew(set)
}
