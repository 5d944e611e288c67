// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// mapping reads a volume's UUID.thin as of a generation, and wants it to be about
// that volume, and to call no block shared that the map does not.
func (s *session) mapping(ctx context.Context, v layout.VolumeRecord, generation uint64) (layout.Mapping, error) {
	var stored layout.Mapping
	err := s.onThin(ctx, v.UUID, false, func(dev group.Volume) error {
		var err error
		stored, err = layout.ReadMapping(dev, s.Cluster, v.UUID, generation)
		return err
	})
	if err != nil {
		return layout.Mapping{}, err
	}
	var foreign extent.Set
	for _, r := range stored.Runs {
		if r.Base != 0 && !slices.Contains(v.Bases, r.Base) {
			foreign = foreign.Union(extent.Of(extent.Extent{Start: r.Physical, Length: r.Length}))
		}
	}
	for _, b := range v.Bases {
		foreign = foreign.Union(stored.Of(b).Minus(s.m.Owned(layout.Owner{Kind: layout.OfBase, Number: b})))
	}
	if stored.Number != v.Number || stored.BlockSize != s.m.BlockSize || !foreign.Empty() {
		err := failure.New(failure.Problems, "volume %s: the mapping of generation %d is of volume %d in blocks of %d, with blocks %v that no base of it has",
			v.Name, generation, stored.Number, stored.BlockSize, foreign)
		return layout.Mapping{}, failure.Hint(err, "run `diskhook thin check`")
	}
	stored.Size = v.Size // that may have grown since
	return stored, nil
}

// store writes a mapping beside the one that counts.
func (s *session) store(ctx context.Context, v layout.VolumeRecord, generation uint64, m layout.Mapping) error {
	return s.storeBeside(ctx, v, v.Stored(), generation, m)
}

// storeBeside writes a mapping beside the one of generation kept, in a UUID.thin
// that is extended if that is needed.
func (s *session) storeBeside(ctx context.Context, v layout.VolumeRecord, kept, generation uint64, m layout.Mapping) error {
	write := func() (size uint64, err error) {
		err = s.onThin(ctx, v.UUID, true, func(dev group.Volume) error {
			size = uint64(dev.Size())
			return layout.WriteMapping(dev, s.Cluster, v.UUID, kept, generation, s.stamp.Epoch, m)
		})
		return size, err
	}
	size, err := write()
	if errors.Is(err, failure.NoSpace) {
		if err = s.Group.Extend(ctx, layout.Thin.Name(v.UUID), size+m.Length()); err == nil {
			_, err = write()
		}
	}
	if err != nil {
		return err
	}
	return failpoint.Hit("thin.master.stored")
}

// newMapping makes the UUID.thin of a volume that the map does not have yet. What
// is there already is left by a try that was not committed.
func (s *session) newMapping(ctx context.Context, id uuid.UUID, m layout.Mapping) error {
	// Twice its length, as the next one is written beside it, and the headers.
	if err := s.Group.Create(ctx, layout.Thin.Name(id), max(thinBytes, 2*m.Length()+2*mappingHeaders)); err != nil {
		return err
	}
	err := s.onThin(ctx, id, true, func(dev group.Volume) error {
		err := layout.CreateMapping(dev, s.Cluster, id, s.stamp.Epoch, m)
		if !errors.Is(err, layout.ErrExists) && !errors.Is(err, layout.ErrDamaged) {
			return err
		}
		if err := s.still(); err != nil {
			return err
		}
		if err := layout.Wipe(dev); err != nil {
			return err
		}
		return layout.CreateMapping(dev, s.Cluster, id, s.stamp.Epoch, m)
	})
	if err != nil {
		return err
	}
	return failpoint.Hit("thin.master.created")
}

const (
	// thinBytes is how long a UUID.thin is at least: an extent of LVM.
	thinBytes = 4 << 20
	// mappingHeaders is what lies before the contents (package layout).
	mappingHeaders = 8 << 10
)

func (m *Master) onThin(ctx context.Context, id uuid.UUID, write bool, do func(group.Volume) error) error {
	return group.With(ctx, m.Group, layout.Thin.Name(id), write, do)
}

// sweep removes the UUID.thin of volumes that a map had and this one has not. What
// it cannot remove now, Collect finds.
func (s *session) sweep(ctx context.Context, before layout.Map) {
	for _, v := range before.Volumes {
		if _, err := find(s.m, v.Number); err == nil {
			continue
		}
		if err := s.Group.Remove(ctx, layout.Thin.Name(v.UUID)); err != nil {
			s.Log.Warn("a deleted volume's mapping stays for now", "volume", v.Name, "error", err)
		}
	}
}
