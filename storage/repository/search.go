// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failure"
)

// found is an image in a repository, which the caller closes unless it is the
// one that he began to look in.
type found struct {
	*repo
	image *image
}

// search finds an image: where its hint says, else in the target, else in the
// participating repositories in their order, else in all that are connected, local
// ones first. A disk that is in two places is a failure.Conflict.
func (s *Service) search(ctx context.Context, target *repo, id string, o Options) (*found, error) {
	if err := checkImageID(id); err != nil {
		return nil, err
	}
	places, err := s.candidates(target, id, o)
	if err != nil {
		return nil, err
	}
	var all []*found
	var silent error
	for _, repoID := range places {
		f, err := s.lookIn(ctx, target, repoID, id)
		switch {
		case err == nil && f.settles(target):
			return f, nil
		case err == nil:
			all = append(all, f)
		case errors.Is(err, ErrNoImage):
		default:
			silent = errors.Join(silent, err)
		}
	}
	return pick(target, id, all, silent)
}

// settles says that nobody needs to look any further: a snapshot's content is the
// same everywhere, and nowhere nearer.
func (f *found) settles(target *repo) bool {
	return f.repo == target && f.image.Kind == Snapshot && !f.image.Plan.creates()
}

// candidates are the repositories in which to look, in order.
func (s *Service) candidates(target *repo, id string, o Options) ([]string, error) {
	if hint, ok := o.ImageHints[id]; ok {
		return []string{hint}, nil
	}
	if o.ParticipatingRepositories != nil {
		return slices.Compact(append([]string{target.id}, o.ParticipatingRepositories...)), nil
	}
	all, err := s.Connections()
	if err != nil {
		return nil, err
	}
	places := []string{target.id}
	for _, c := range all {
		if c.RepoID != target.id {
			places = append(places, c.RepoID)
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
// closes the others.
func pick(target *repo, id string, all []*found, silent error) (*found, error) {
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
