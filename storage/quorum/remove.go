// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"maps"
	"slices"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
)

// Remove takes a set that nobody uses, and that has nothing of a guest's, away:
// its definition and all marks; its images only when told, and then only files,
// of each chain the top one. What cannot be reached keeps its mark. After a crash
// the same call goes on.
func (s *Service) Remove(ctx context.Context, name string, deleteImages bool) error {
	held, set, err := s.hold(name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := set.Unwritten(); err != nil {
		return err
	}
	if i := set.Intent; i == nil || i.Verb != verbRemove {
		set.Intent = &Intent{Verb: verbRemove, DeleteImages: deleteImages}
		if err := s.intend(set); err != nil {
			return err
		}
	}
	kept := map[string]string{}
	for _, r := range set.Replicas {
		if err := s.discard(ctx, set, r); err != nil {
			kept[r.String()] = err.Error()
		}
	}
	for _, r := range slices.Sorted(maps.Keys(kept)) {
		s.Log.WarnContext(ctx, "a replica keeps its mark", "set", set.Name, "replica", r, "err", kept[r])
	}
	if err := s.forget(set); err != nil {
		return err
	}
	return failpoint.Hit("quorum.forgotten")
}

// discard takes a replica's image away, if it is to go, and then its mark.
func (s *Service) discard(ctx context.Context, set Set, r Replica) error {
	if top := r.Top(); set.Intent.DeleteImages && top.Type == File {
		m, err := s.readMark(ctx, set, r)
		if err != nil {
			return err
		}
		if m == nil || m.Set != set.UUID || m.Replica != r.ID {
			return errors.New("its image has no mark of this set and stays")
		}
		if _, err := s.Config.Paths.Allowed(top.Path); err == nil {
			if err := atomicfile.Remove(top.Path); err != nil {
				return err
			}
		}
	}
	if err := failpoint.Hit("quorum.discarded." + r.ID); err != nil {
		return err
	}
	return s.removeMark(ctx, set, r)
}
