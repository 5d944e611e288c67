// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"diskhook/storage/failure"
)

// found is an image in a repository, which the caller closes unless it is the
// one that he began to look in.
type found struct {
	*repo
	image *image
}

// grace is how long those repositories that have not answered are still waited for
// once a snapshot was found: it is the same elsewhere, but may be nearer.
const grace = time.Second

// search finds an image: where its hint says, else in the target, else in the
// participating repositories in their order, else in all that are connected, local
// ones first. All are asked at the same time, so that one that hangs costs no more than its
// own deadline, and where a snapshot was found nothing. A disk that is in two
// places is a failure.Conflict.
func (s *Service) search(ctx context.Context, target *repo, id string, o Options) (*found, error) {
	if err := checkImageID(id); err != nil {
		return nil, err
	}
	places, err := s.candidates(target, id, o)
	if err != nil {
		return nil, err
	}
	type answer struct {
		place int
		found *found
		err   error
	}
	looking, stop := context.WithCancel(ctx)
	answers := make(chan answer, len(places))
	for i, repoID := range places {
		go func() {
			f, err := s.lookIn(looking, target, repoID, id)
			answers <- answer{i, f, err}
		}()
	}
	all := make([]*found, len(places))
	left := len(places)
	defer func() { // those that come too late
		stop()
		go func() {
			for range left {
				if a := <-answers; a.found != nil {
					a.found.closeUnless(target)
				}
			}
		}()
	}()
	var silent error
	var enough <-chan time.Time
	for left > 0 {
		select {
		case a := <-answers:
			left--
			all[a.place] = a.found
			switch {
			case a.err == nil && a.found.settles(target):
				return pick(target, id, all, nil)
			case a.err == nil && a.found.complete() && enough == nil:
				enough = time.After(grace)
			case a.err != nil && !errors.Is(a.err, ErrNoImage):
				silent = errors.Join(silent, a.err)
			}
			continue
		case <-enough:
		}
		break
	}
	return pick(target, id, all, silent)
}

// complete says that it does not matter where else it is.
func (f *found) complete() bool { return f.image.Kind == Snapshot && !f.image.Plan.creates() }

// settles says that nobody needs to look any further: a snapshot's content is the
// same everywhere, and nowhere nearer.
func (f *found) settles(target *repo) bool { return f.repo == target && f.complete() }

// candidates are the repositories in which to look, in order, each once.
func (s *Service) candidates(target *repo, id string, o Options) ([]string, error) {
	if hint, ok := o.ImageHints[id]; ok {
		return []string{hint}, nil
	}
	others := o.ParticipatingRepositories
	if others == nil {
		var err error
		if others, err = s.connectionIDs(); err != nil {
			return nil, err
		}
	}
	places := []string{target.id}
	for _, repoID := range others {
		if !slices.Contains(places, repoID) {
			places = append(places, repoID)
		}
	}
	return places, nil
}

func (s *Service) lookIn(ctx context.Context, target *repo, repoID, id string) (*found, error) {
	r := target
	if repoID != target.id {
		var err error
		if r, err = s.connected(ctx, repoID); err != nil {
			return nil, err
		}
	}
	img, err := r.visible(ctx, id)
	if err != nil {
		r.closeUnless(target)
		return nil, err
	}
	return &found{r, img}, nil
}

func (r *repo) closeUnless(target *repo) {
	if r != target {
		r.close()
	}
}

// pick takes the first one that is usable, local ones before shared ones, and
// closes the others; those that are nil were not found.
func pick(target *repo, id string, all []*found, silent error) (*found, error) {
	all = slices.DeleteFunc(all, func(f *found) bool { return f == nil })
	if len(all) == 0 && silent != nil {
		return nil, fmt.Errorf("image %s: not found where it was looked for, but: %w", id, silent)
	}
	if len(all) == 0 {
		err := fmt.Errorf("image %s: %w in the repositories that were looked in", id, ErrNoImage)
		return nil, failure.Hint(err, "connect the one it is in; `diskhook repo list` shows which are")
	}
	slices.SortStableFunc(all, func(a, b *found) int { return a.rank(target) - b.rank(target) })
	for _, f := range all[1:] {
		f.closeUnless(target)
	}
	if len(all) > 1 && all[0].image.Kind == Disk {
		all[0].closeUnless(target)
		return nil, failure.New(failure.Conflict, "virtual disk %s: it is in %s and in %s; which one is right nobody can tell", id, all[0].id, all[1].id)
	}
	return all[0], nil
}

func (f *found) rank(target *repo) int {
	rank := 0
	if f.image.Plan.creates() {
		rank += 4
	}
	if f.repo != target && f.place.Capabilities().Shared {
		rank++
	}
	if f.repo != target {
		rank++
	}
	return rank
}
