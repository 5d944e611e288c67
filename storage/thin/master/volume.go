// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/request"
)

// find is a volume of a map.
func find(m layout.Map, number uint32) (layout.VolumeRecord, error) {
	for _, v := range m.Volumes {
		if v.Number == number {
			return v, nil
		}
	}
	err := failure.New(failure.NotFound, "volume %d: the cluster has none", number)
	return layout.VolumeRecord{}, failure.Hint(err, "see `diskhook thin status`")
}

// known says whether a map has a volume of a clone's name and UUID: then the clone
// was made before, under another sequence.
func known(m layout.Map, want layout.VolumeRecord) bool {
	for _, v := range m.Volumes {
		if v.UUID == want.UUID && v.Name == want.Name {
			return true
		}
	}
	return false
}

func (s *session) create(ctx context.Context, m layout.Map, r request.Create) (layout.Map, error) {
	next, number, err := ledger.Create(m, r.ID, r.Name, r.Size)
	if err != nil || len(next.Volumes) == len(m.Volumes) {
		return next, err
	}
	empty := layout.Mapping{Number: number, BlockSize: m.BlockSize, Size: r.Size}
	return next, s.newMapping(ctx, r.ID, empty)
}

func remove(m layout.Map, r request.Delete) (layout.Map, error) {
	v, err := find(m, r.Volume)
	if err != nil {
		return m, err
	}
	if r.Generation != 0 && v.Generation != r.Generation {
		err := failure.New(failure.Conflict, "volume %s: it is of generation %d, not %d any more: somebody has used it since", v.Name, v.Generation, r.Generation)
		return m, failure.Hint(err, "see `diskhook thin status`; `diskhook thin delete %s` deletes it as it is", v.Name)
	}
	return ledger.Delete(m, r.Volume)
}

func (s *session) clone(ctx context.Context, m layout.Map, r request.Clone) (layout.Map, error) {
	if known(m, layout.VolumeRecord{UUID: r.ID, Name: r.Name}) {
		return m, nil
	}
	next, number, base, err := ledger.Clone(m, r.Of, r.ID, r.Name)
	if err != nil {
		return m, err
	}
	v, err := find(m, r.Of)
	if err != nil {
		return m, err
	}
	stored, err := s.mapping(ctx, v, v.Stored())
	if err != nil {
		return m, err
	}
	if err := s.store(ctx, v, v.Generation+1, shared(stored, v.Number, base)); err != nil {
		return m, err
	}
	return next, s.newMapping(ctx, r.ID, shared(stored, number, base))
}

// cloneAttached takes the mapping of a snapshot from where the host that has the
// volume wrote it: where its next mapping would be if it were detached.
func (s *session) cloneAttached(ctx context.Context, m layout.Map, from uint32, r request.CloneAttached) (layout.Map, error) {
	if known(m, layout.VolumeRecord{UUID: r.ID, Name: r.Name}) {
		return m, nil
	}
	v, err := find(m, r.Of)
	if err != nil {
		return m, err
	}
	snapshot, err := s.mapping(ctx, v, v.Generation+1)
	if err != nil {
		return m, err
	}
	next, number, base, err := ledger.CloneAttached(m, r.Of, from, snapshot.Private(), r.ID, r.Name)
	if err != nil {
		return m, err
	}
	return next, s.newMapping(ctx, r.ID, shared(snapshot, number, base))
}

// shared is a mapping, for a volume of a number, in which what was private is of a
// base.
func shared(m layout.Mapping, number, base uint32) layout.Mapping {
	runs := make([]layout.MappingRun, len(m.Runs))
	for i, r := range m.Runs {
		if r.Base == 0 {
			r.Base = base
		}
		runs[i] = r
	}
	m.Number, m.Runs = number, runs
	return m
}

func (s *session) beginAttach(ctx context.Context, m layout.Map, from uint32, r request.BeginAttach) (layout.Map, error) {
	v, err := find(m, r.Volume)
	if err != nil {
		return m, err
	}
	if v.State == layout.Suspect {
		if !r.Suspect {
			err := failure.New(failure.Precondition, "volume %s: it is suspect: what its host wrote last may be lost", v.Name)
			return m, failure.Hint(err, "export and examine it, then run `diskhook thin attach --suspect %s`", v.Name)
		}
		if m, err = ledger.Accept(m, r.Volume); err != nil {
			return m, err
		}
	}
	stored, err := s.mapping(ctx, v, v.Stored())
	if err != nil {
		return m, err
	}
	return ledger.BeginAttach(m, r.Volume, from, stored)
}

func (s *session) finishDetach(ctx context.Context, m layout.Map, from uint32, r request.FinishDetach) (layout.Map, error) {
	v, err := find(m, r.Volume)
	if err != nil {
		return m, err
	}
	if !v.State.On() {
		return m, nil // done before, under another sequence
	}
	stored, err := s.mapping(ctx, v, v.Generation+1)
	if err != nil {
		return m, err
	}
	return ledger.FinishDetach(m, r.Volume, from, stored, r.Suspect)
}
