// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"maps"
	"slices"

	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
)

// Collected is what Collect found that nobody needs.
type Collected struct {
	Blocks  uint64   `json:"blocks"`  // of bases, free from now on
	Volumes []string `json:"volumes"` // mappings of volumes that are no more, removed
}

// Collect frees blocks of bases that no volume maps any more, and removes what
// verbs left that did not end.
func (m *Master) Collect(ctx context.Context) (Collected, error) {
	var c Collected
	err := m.change(ctx, func(s *session) error {
		next, freed, err := s.collect(ctx)
		if err != nil {
			return err
		}
		if collects(next, s.m) {
			if err := s.commit(ctx, next); err != nil {
				return err
			}
		}
		c.Blocks = freed
		c.Volumes, err = s.removeStrays(ctx)
		return err
	})
	return c, err
}

// Collectable says whether Collect would change anything.
func (m *Master) Collectable(ctx context.Context) (bool, error) {
	var some bool
	err := m.watch(ctx, func(s *session) error {
		next, _, err := s.collect(ctx)
		if err != nil {
			return err
		}
		gone, err := s.strays(ctx)
		some = collects(next, s.m) || len(gone) > 0
		return err
	})
	return some, err
}

// collects says that a map lacks something that another one has, also where no block
// becomes free: a volume may have lost its last reference to a base.
func collects(next, now layout.Map) bool {
	return !slices.Equal(next.Owners, now.Owners) || !sameBases(next, now)
}

func sameBases(a, b layout.Map) bool {
	return slices.EqualFunc(a.Volumes, b.Volumes, func(a, b layout.VolumeRecord) bool { return slices.Equal(a.Bases, b.Bases) })
}

// collect makes the map without what no mapping refers to.
func (s *session) collect(ctx context.Context) (layout.Map, uint64, error) {
	stored := map[uint32]layout.Mapping{}
	for _, v := range s.m.Volumes {
		if len(v.Bases) == 0 {
			continue
		}
		mapping, err := s.mapping(ctx, v, v.Stored())
		if err != nil {
			return s.m, 0, err
		}
		stored[v.Number] = mapping
	}
	next, freed := s.m, uint64(0)
	for _, base := range bases(s.m) {
		m, dead, err := ledger.Collect(next, base, stored)
		if err != nil {
			return s.m, 0, err
		}
		next, freed = m, freed+dead.Blocks()
	}
	return next, freed, nil
}

// strays are the UUID.thin of which the map has no volume.
func (s *session) strays(ctx context.Context) ([]string, error) {
	list, err := s.Group.List(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, lv := range list {
		id, suffix, _ := layout.ParseName(lv.Name)
		if suffix == layout.Thin && !lv.Foreign && !slices.ContainsFunc(s.m.Volumes, func(v layout.VolumeRecord) bool { return v.UUID == id }) {
			names = append(names, lv.Name)
		}
	}
	return names, nil
}

// removeStrays removes them.
func (s *session) removeStrays(ctx context.Context) ([]string, error) {
	names, err := s.strays(ctx)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		if err := s.Group.Remove(ctx, name); err != nil {
			return names[:i], err
		}
	}
	return names, nil
}

// bases are those that have blocks or referrers.
func bases(m layout.Map) []uint32 {
	there := map[uint32]bool{}
	for _, r := range m.Owners {
		if r.Kind == layout.OfBase {
			there[r.Number] = true
		}
	}
	for _, v := range m.Volumes {
		for _, b := range v.Bases {
			there[b] = true
		}
	}
	return slices.Sorted(maps.Keys(there))
}
