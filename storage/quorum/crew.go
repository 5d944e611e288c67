// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
)

// crew is the open replicas of a set that an offline verb works on.
type crew struct {
	set     Set
	voters  []*opened
	others  []*opened         // do not vote; what they hold is to be replaced
	missing map[string]string // replicas that are not here, with why
	need    int               // how many voters must agree
}

// muster opens the replicas called voters, and others beside them. One that
// does not open is missing; a voter that is in use is an error.
func (s *Service) muster(ctx context.Context, set Set, voters, others []string, readOnly bool, held ...*os.File) (*crew, error) {
	c := &crew{set: set, missing: map[string]string{}, need: majority(set, len(voters))}
	ids := slices.Concat(voters, others)
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
		case failed[i] == nil && i < len(voters):
			c.voters = append(c.voters, opens[i])
		case failed[i] == nil:
			c.others = append(c.others, opens[i])
		default:
			c.missing[id] = failure.OneLine(failed[i].Error())
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
