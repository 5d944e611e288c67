// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// Building is what to build.
type Building struct {
	Name string
	// Replicas are as ParseReplica gives them. A file that does not exist is
	// made, in the layer's format; devices and NBD exports must exist.
	Replicas  []Layer
	Threshold int
	// ReadPattern "" is Vote.
	ReadPattern   string
	AllowMinority bool
	// From is the chain to copy, top first; none: the disk is Size bytes of
	// zeros.
	From []imagecheck.Layer
	Size int64 // without From and Adopt; else 0
	// Overwrite: what lies in images and on devices that exist may go.
	Overwrite bool
	// Adopt takes images that exist as they are, their backing files with
	// them, once they are found to be equal. There is no From then.
	Adopt    bool
	Progress progress.Func `json:"-"` // of all replicas together
}

// Build makes a replica set: it writes the definition, with what it is about to
// do, copies the source to all replicas, at most parallel at a time, and marks
// them. After a crash the same call goes on; of a set that is complete it says
// so. It returns when everything is durable.
//
// A replica that is the source, in use, part of another set or not empty is a
// failure.Conflict; what is wrong with the definition itself a failure.Usage;
// file systems that are too full a failure.NoSpace.
func (s *Service) Build(ctx context.Context, b Building) (Set, error) {
	held, err := s.Lock(b.Name)
	if err != nil {
		return Set{}, err
	}
	defer held.Release()
	if err := b.check(); err != nil {
		return Set{}, err
	}
	set, err := s.Load(b.Name)
	switch {
	case err == nil:
		if set, err = s.resume(ctx, set, b); err != nil || set.Intent == nil {
			return set, err
		}
	case errors.Is(err, failure.NotFound):
		if set, err = s.plan(ctx, b); err != nil {
			return Set{}, err
		}
	default:
		return Set{}, err
	}
	if err := s.intend(set); err != nil {
		return Set{}, err
	}
	return set, s.build(ctx, &set, b.Progress, held.File())
}

// build does what a definition with the intent to build says.
func (s *Service) build(ctx context.Context, set *Set, report progress.Func, held *os.File) error {
	if set.Intent.Adopt {
		if err := s.alike(ctx, *set, report, held); err != nil {
			return err
		}
	} else if err := s.fillAll(ctx, *set, report, held); err != nil {
		return err
	}
	if err := s.sourceUnchanged(ctx, *set); err != nil {
		return err
	}
	_, left, err := s.raise(ctx, *set, Origin{}, 1, set.IDs(), true)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		err := failure.New(failure.Problems, "%s: not all of its replicas take a mark: %w", set, joined(left))
		return failure.Hint(err, "mend that, then run the same command again")
	}
	for _, r := range set.Replicas {
		if err := s.removeCursor(*set, r); err != nil {
			return err
		}
	}
	set.Intent = nil
	if err := s.save(*set); err != nil {
		return err
	}
	return failpoint.Hit("quorum.built")
}

// check refuses what contradicts itself.
func (b Building) check() error {
	given := 0
	for _, is := range []bool{len(b.From) > 0, b.Adopt, b.Size > 0} {
		if is {
			given++
		}
	}
	if given != 1 {
		err := failure.New(failure.Usage, "replica set %s: it is copied from a source, takes images as they are, or has a size: one of the three", b.Name)
		return failure.Hint(err, "give --from SRC, --adopt or --size BYTES")
	}
	if b.Adopt && b.Overwrite {
		return failure.New(failure.Usage, "replica set %s: images are taken as they are or overwritten, not both", b.Name)
	}
	return nil
}

// plan is the definition of a new set, with its intent. Nothing is changed.
func (s *Service) plan(ctx context.Context, b Building) (Set, error) {
	set := Set{
		Schema: setSchema, Name: b.Name, UUID: uuid.NewString(), Size: b.Size,
		Threshold: b.Threshold, ReadPattern: b.pattern(), AllowMinority: b.AllowMinority,
		NextID: len(b.Replicas) + 1, Intent: &Intent{Verb: verbBuild, Adopt: b.Adopt},
	}
	for i, l := range b.Replicas {
		r, err := s.resolve(ctx, fmt.Sprintf("r%d", i+1), l, b.Adopt)
		if err != nil {
			return Set{}, err
		}
		set.Replicas = append(set.Replicas, r)
	}
	if len(b.From) > 0 {
		info, err := s.checker().Chain(ctx, b.From)
		if err != nil {
			return Set{}, fmt.Errorf("source: %w", err)
		}
		set.Size, set.Source = info.VirtualSize, sourceOf(b.From, info)
		if set.Intent.Source, err = typed(b.From); err != nil {
			return Set{}, err
		}
	}
	if b.Adopt && len(set.Replicas) > 0 {
		size, _, err := s.measure(ctx, set.Replicas[0])
		if err != nil {
			return Set{}, fmt.Errorf("%s: %w", set.Replicas[0], err)
		}
		set.Size = size / sector * sector
	}
	if err := set.Check(); err != nil {
		return Set{}, err
	}
	if err := s.admit(ctx, set, set.Replicas, b.Overwrite); err != nil {
		return set, err
	}
	return set, s.roomToBuild(ctx, set)
}

func (b Building) pattern() string {
	if b.ReadPattern == "" {
		return Vote
	}
	return b.ReadPattern
}

// resume holds what is asked for against what is defined. A set that was asked
// for and is complete comes back without an intent.
func (s *Service) resume(ctx context.Context, set Set, b Building) (Set, error) {
	same := len(b.Replicas) == len(set.Replicas) && b.Threshold == set.Threshold && b.pattern() == set.ReadPattern &&
		(b.Size == 0 || b.Size == set.Size)
	for i := 0; same && i < len(b.Replicas); i++ {
		same = set.Replicas[i].Top().String() == b.Replicas[i].String()
	}
	i := set.Intent
	switch {
	case i != nil && i.Verb != verbBuild:
		return set, refuseWhile(set, verbBuild)
	case !same, i != nil && (i.Adopt != b.Adopt || !slices.EqualFunc(i.Source, b.From, sameLayer)):
		err := failure.New(failure.Conflict, "%s: it is defined already, and otherwise", &set)
		return set, failure.Hint(err, "see `diskhook quorum status %s`; take it away with `diskhook quorum remove %s`", set.Name, set.Name)
	case i == nil:
		return set, s.holdsSource(ctx, set, b)
	}
	if len(b.From) > 0 {
		info, err := s.checker().Chain(ctx, b.From)
		if err != nil {
			return set, fmt.Errorf("source: %w", err)
		}
		set.Source = sourceOf(b.From, info) // what was copied before the crash is compared with it
	}
	// What was admitted before the crash has our mark now.
	var fresh []Replica
	for _, r := range set.Replicas {
		if m, err := s.readMark(ctx, set, r); err != nil || m == nil || m.Set != set.UUID {
			fresh = append(fresh, r)
		}
	}
	if err := s.admit(ctx, set, fresh, b.Overwrite); err != nil {
		return set, err
	}
	return set, s.roomToBuild(ctx, set)
}

func sameLayer(ours Layer, plain imagecheck.Layer) bool {
	return ours.Path == plain.Path && ours.Format == plain.Format
}

// alike compares images that are taken as they are.
func (s *Service) alike(ctx context.Context, set Set, report progress.Func, held *os.File) error {
	s.Activate(ctx, set)
	c, err := s.muster(ctx, set, cast{voters: set.IDs()}, true, held)
	if err != nil {
		return err
	}
	defer c.dismiss()
	v, err := c.verify(ctx, report)
	if err != nil || v.Equal() {
		return err
	}
	return failure.Hint(v.Err(), "copy one of them over the others with `diskhook quorum build --overwrite --from IMAGE … %s`", set.Name)
}
