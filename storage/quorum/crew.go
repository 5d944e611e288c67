// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// crew is the open replicas of a set that an offline verb works on.
type crew struct {
	set     Set
	voters  []*opened
	others  []*opened         // do not vote; what they hold is to be replaced
	missing map[string]string // replicas that are not here, with why
	need    int               // how many voters must agree
}

// cast says what the replicas of a set, by their ids, are to an offline verb:
// who votes, who is held against the voters, and who is missing, with why.
type cast struct {
	voters, others []string
	missing        map[string]string
}

// roles casts the replicas of a set. believe names the only voter; "" leaves it
// to the decision. A replica whose mark is of something else is missing, whatever
// lies in its image.
func roles(set Set, d Decision, observed []Observed, believe string) cast {
	who := cast{missing: map[string]string{}}
	left := map[string]LeftOut{}
	for _, l := range d.Left {
		left[l.ID] = l
	}
	for _, o := range observed {
		l, out := left[o.ID]
		foreign := o.Mark != nil && (o.Mark.Set != set.UUID || o.Mark.Replica != o.ID)
		switch {
		case o.Image != nil, o.NoMark != nil, foreign:
			who.missing[o.ID] = l.Why
		case believe == "" && !out, believe == o.ID:
			who.voters = append(who.voters, o.ID)
		default:
			who.others = append(who.others, o.ID)
		}
	}
	return who
}

// muster opens the voters of a cast, and the others beside them. One that does
// not open is missing; one that is in use is an error.
func (s *Service) muster(ctx context.Context, set Set, who cast, readOnly bool, held ...*os.File) (*crew, error) {
	c := &crew{set: set, missing: map[string]string{}, need: majority(set, len(who.voters))}
	maps.Copy(c.missing, who.missing)
	ids := slices.Concat(who.voters, who.others)
	opens, failed := make([]*opened, len(ids)), make([]error, len(ids))
	var pending sync.WaitGroup
	for i, id := range ids {
		pending.Go(func() {
			r, ok := set.Replica(id)
			if !ok {
				failed[i] = noReplica(set, id)
				return
			}
			opens[i], failed[i] = s.openReplica(ctx, set, r, readOnly, held...)
		})
	}
	pending.Wait()
	var fatal error
	for i, id := range ids {
		switch {
		case failed[i] == nil && i < len(who.voters):
			c.voters = append(c.voters, opens[i])
		case failed[i] == nil:
			c.others = append(c.others, opens[i])
		default:
			c.missing[id] = set.reason(id, failed[i])
			if errors.Is(failed[i], failure.Conflict) {
				fatal = errors.Join(fatal, failed[i])
			}
		}
	}
	if err := errors.Join(fatal, stopped(ctx)); err != nil {
		c.dismiss()
		return nil, err
	}
	return c, nil
}

// majority is how many of n voters have to agree: more than half of them, and
// no fewer than the set asks of a read.
func majority(set Set, n int) int { return max(set.Threshold, n/2+1) }

func (c *crew) all() []*opened { return slices.Concat(c.voters, c.others) }

// dismiss ends all daemons.
func (c *crew) dismiss() {
	var pending sync.WaitGroup
	for _, o := range c.all() {
		pending.Go(o.close)
	}
	pending.Wait()
}

// walk is one over this crew.
func (c *crew) walk() *walk {
	w := newWalk(c.set.Size, c.need)
	for _, o := range c.voters {
		w.add(o.id, o, true)
	}
	for _, o := range c.others {
		w.add(o.id, o, false)
	}
	return w
}

// agreed compares all replicas, and refuses where the voters do not decide every
// block.
func (c *crew) agreed(ctx context.Context) (Verification, error) {
	found, err := c.verify(ctx, nil)
	if err == nil {
		err = c.decided(found)
	}
	return found, err
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

// equalize writes what the voters agree on to whoever was found to differ, and
// flushes. A voter only gets what the majority has.
func (c *crew) equalize(ctx context.Context, found Verification, report progress.Func) error {
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

// flush makes everything durable that was written.
func (c *crew) flush() error {
	var failed []error
	for _, o := range c.all() {
		if err := o.Flush(); err != nil {
			failed = append(failed, failure.New(failure.Problems, "replica %s: flush: %w", o.id, err))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return failpoint.Hit("quorum.flushed")
}

// present are the ids of those that are here.
func (c *crew) present() []string {
	var ids []string
	for _, id := range c.set.IDs() {
		if slices.ContainsFunc(c.all(), func(o *opened) bool { return o.id == id }) {
			ids = append(ids, id)
		}
	}
	return ids
}
