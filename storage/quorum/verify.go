// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/progress"
)

// Verification is what a comparison of all replicas found. A long list of
// ranges is rounded outwards.
type Verification struct {
	Set  string `json:"set"`
	Size int64  `json:"size"` // bytes
	Read int64  `json:"read"` // bytes that were read of each replica; holes of all are not
	// Voters are the replicas that decided, Need is how many had to agree.
	Voters []string `json:"voters"`
	Need   int      `json:"need"`
	// Differs are, by replica, the ranges in which it is not like the majority.
	Differs map[string][]Range `json:"differs"`
	// NoMajority are the ranges in which too few voters agree.
	NoMajority []Range `json:"no_majority"`
	// Missing are the replicas that were not compared, with why.
	Missing map[string]string `json:"missing"`
}

// Equal says that all replicas were read and are the same.
func (v Verification) Equal() bool {
	return len(v.Differs) == 0 && len(v.NoMajority) == 0 && len(v.Missing) == 0
}

// Err is what is wrong, in one line, as a failure.Problems with the way out;
// nil when all replicas are equal.
func (v Verification) Err() error {
	var words []string
	for _, id := range slices.Sorted(maps.Keys(v.Missing)) {
		words = append(words, fmt.Sprintf("%s is missing: %s", id, v.Missing[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(v.Differs)) {
		words = append(words, fmt.Sprintf("%s differs in %d bytes from byte %d on", id, total(v.Differs[id]), v.Differs[id][0].Offset))
	}
	if len(v.NoMajority) > 0 {
		words = append(words, fmt.Sprintf("no majority in %d bytes from byte %d on", total(v.NoMajority), v.NoMajority[0].Offset))
	}
	if len(words) == 0 {
		return nil
	}
	err := failure.New(failure.Problems, "replica set %s: %s", v.Set, strings.Join(words, "; "))
	switch {
	case len(v.NoMajority) > 0:
		return failure.Hint(err, "look which replica is right, then `diskhook quorum resync --from ID %s`", v.Set)
	case len(v.Differs) > 0:
		return failure.Hint(err, "repair with `diskhook quorum resync %s`", v.Set)
	}
	return failure.Hint(err, "bring it back, or `diskhook quorum replace %s %s NEW`", v.Set, slices.Sorted(maps.Keys(v.Missing))[0])
}

func total(list []Range) (n int64) {
	for _, r := range list {
		n += r.Length
	}
	return n
}

// Verify compares all replicas of a set that nobody uses, and changes nothing.
// Those of the newest generation vote; the others are held against them. What
// was found is in the Verification; the error is for what kept it from being
// looked at. A set in use is a failure.Conflict.
func (s *Service) Verify(ctx context.Context, name string, report progress.Func) (Verification, error) {
	held, set, err := s.hold(name)
	if err != nil {
		return Verification{}, err
	}
	defer held.Release()
	if i := set.Intent; i != nil && i.Verb == verbBuild { // nobody can be right yet
		return Verification{}, refuseWhile(set)
	}
	s.Activate(ctx, set)
	d, observed, err := s.Decide(ctx, set)
	if err != nil {
		return Verification{}, err
	}
	c, err := s.muster(ctx, set, roles(set, d, observed, ""), true, held.File())
	if err != nil {
		return Verification{}, err
	}
	defer c.dismiss()
	return c.verify(ctx, report)
}

// verify compares a crew.
func (c *crew) verify(ctx context.Context, report progress.Func) (Verification, error) {
	w := c.walk()
	w.progress = report
	if err := w.over(ctx, nil); err != nil {
		return Verification{}, fmt.Errorf("%s: %w", &c.set, err)
	}
	return c.found(w), nil
}

// found puts together what a walk has found.
func (c *crew) found(w *walk) Verification {
	v := Verification{
		Set: c.set.Name, Size: c.set.Size, Read: w.read, Need: c.need,
		Differs: map[string][]Range{}, NoMajority: w.none.list, Missing: c.missing,
	}
	for _, s := range w.sides {
		if s.votes {
			v.Voters = append(v.Voters, s.id)
		}
		if len(s.differs.list) > 0 {
			v.Differs[s.id] = s.differs.list
		}
	}
	return v
}
