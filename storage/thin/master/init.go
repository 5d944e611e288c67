// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

const (
	// firstEpoch is that of the host that made the cluster.
	firstEpoch = 1
	// mapBytes is how long the map's volume is at first; it is extended when needed.
	mapBytes = 32 << 20
)

// Shape is what a new cluster is to be.
type Shape struct {
	Bytes     uint64 // of global-thin-pool; 0: as Fill chooses
	BlockSize uint64 // bytes; 0: as layout.GeometryFor chooses
}

// length is that of the data volume in bytes: at least what two blocks fit into.
func (s Shape) length() uint64 {
	return max(s.Bytes, 2*max(s.BlockSize, layout.MinBlockSize))
}

// Init makes a cluster out of an empty volume group, and this host its master. A
// group in which there is one already, or that has volumes of somebody else under
// its names, is refused. Run again after a crash, it goes on.
func (m *Master) Init(ctx context.Context, shape Shape) (layout.Geometry, error) {
	var g layout.Geometry
	err := m.locked(ctx, func() error {
		if err := m.vacant(ctx); err != nil {
			return err
		}
		first, err := m.remembered()
		if err != nil {
			return err
		}
		if first.Epoch != firstEpoch { // an earlier try's map has its claim
			first = reign{Epoch: firstEpoch, Claim: uuid.New()}
		}
		if err := m.remember(first); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.master.init"); err != nil {
			return err
		}
		own := *m // for the time of this
		own.Group = group.Guarded(m.Group, func() error { return m.founding(ctx) })
		if g, err = own.makeData(ctx, shape); err == nil {
			err = own.makeMap(ctx, g, first.Claim)
		}
		return err
	})
	return g, err
}

// founding fails if somebody else has made a cluster in the group since, or rules the
// one that this host began. It is asked before each change of LVM's metadata.
func (m *Master) founding(ctx context.Context) error {
	if err := m.vacant(ctx); err != nil {
		return err
	}
	err := group.With(ctx, m.Group, layout.MapName, false, func(dev group.Volume) error {
		current, stamp, err := layout.ReadMap(dev, m.Cluster)
		if err != nil {
			return err
		}
		return m.reigns(current, stamp)
	})
	if errors.Is(err, failure.NotFound) || errors.Is(err, layout.ErrEmpty) {
		return nil
	}
	return err
}

// vacant fails if there is a cluster, or what is left of one: its map alone may be
// gone, and a new one would give all its blocks away.
func (m *Master) vacant(ctx context.Context) error {
	last, err := m.remembered()
	if err != nil {
		return err
	}
	list, err := m.Group.List(ctx)
	if err != nil {
		return err
	}
	for _, lv := range list {
		_, suffix, _ := layout.ParseName(lv.Name)
		switch {
		case suffix == layout.Host || suffix == layout.Thin || lv.Name == layout.MapName && last.Epoch == 0:
			err := failure.New(failure.Conflict, "%s: %w: the group has volumes of a cluster", m.Group.Path(lv.Name), layout.ErrExists)
			return failure.Hint(err, "see `diskhook thin status`; if its map is lost, run `diskhook thin check --rebuild-map`")
		}
	}
	return nil
}

// Plan is the shape that Init would make, with its length chosen if it has none. It
// changes nothing, and fails as Init would: where there is a cluster, where there is no
// room for it and its map, and at a shape that no cluster has.
func (m *Master) Plan(ctx context.Context, shape Shape) (Shape, error) {
	if err := m.vacant(ctx); err != nil {
		return shape, err
	}
	shape, err := m.Fill(ctx, shape)
	if err != nil {
		return shape, err
	}
	if _, err := layout.GeometryFor(shape.length(), shape.BlockSize); err != nil {
		return shape, failure.Wrap(failure.Usage, err)
	}
	list, err := m.Group.List(ctx)
	if err != nil || slices.ContainsFunc(list, func(lv group.LV) bool { return lv.Name == layout.DataName }) {
		return shape, err // of an earlier try, which keeps its length
	}
	free, err := m.Group.Free(ctx)
	if err == nil && (free < mapBytes || free-mapBytes < shape.length()) {
		err = failure.New(failure.NoSpace, "%s: %d bytes are wanted, and %d for the map: %d are free", m.Group.Path(layout.DataName), shape.length(), mapBytes, free)
		err = failure.Hint(err, "ask for less with --size, or extend the volume group")
	}
	return shape, err
}

// What Fill leaves room for in a small group; a tenth of a large one is more.
const (
	roomForHosts   = 4
	roomForVolumes = 16
)

// Fill is the shape with its length chosen, if it has none: nine tenths of what is free,
// but what is left has room for the map, that has become twice as long, and for the
// UUID.host of a few hosts and the UUID.thin of a few volumes, as long as that is not
// more than half.
func (m *Master) Fill(ctx context.Context, shape Shape) (Shape, error) {
	if shape.Bytes != 0 {
		return shape, nil
	}
	free, err := m.Group.Free(ctx)
	if err != nil {
		return shape, err
	}
	left := uint64(2*mapBytes + roomForVolumes*thinBytes)
	if g, err := layout.GeometryFor(free, shape.BlockSize); err == nil { // else it is refused later
		left += roomForHosts * ((hostBytes(g.Blocks, 0) + thinBytes - 1) / thinBytes * thinBytes)
	}
	shape.Bytes = free - min(max(left, free-free/10*9), free/2)
	return shape, nil
}

// makeData makes global-thin-pool with its label.
func (m *Master) makeData(ctx context.Context, shape Shape) (layout.Geometry, error) {
	shape, err := m.Fill(ctx, shape)
	if err != nil {
		return layout.Geometry{}, err
	}
	if err := m.Group.Create(ctx, layout.DataName, shape.length()); err != nil { // one that is there keeps its length
		return layout.Geometry{}, err
	}
	if err := failpoint.Hit("thin.master.init.data"); err != nil {
		return layout.Geometry{}, err
	}
	var g layout.Geometry
	err = group.With(ctx, m.Group, layout.DataName, true, func(dev group.Volume) error {
		var err error
		if g, err = layout.GeometryFor(uint64(dev.Size()), shape.BlockSize); err != nil {
			return failure.Wrap(failure.Usage, err)
		}
		if err := layout.Unused(dev, m.Cluster); err != nil {
			return err
		}
		err = layout.CreateLabel(dev, m.Cluster, firstEpoch, g)
		if errors.Is(err, layout.ErrExists) {
			g, err = layout.ReadLabel(dev, m.Cluster) // of an earlier try
		}
		return err
	})
	return g, err
}

// makeMap makes the map, with which the cluster begins to be.
func (m *Master) makeMap(ctx context.Context, g layout.Geometry, claim uuid.UUID) error {
	if err := m.Group.Create(ctx, layout.MapName, mapBytes); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.master.init.map"); err != nil {
		return err
	}
	return group.With(ctx, m.Group, layout.MapName, true, func(dev group.Volume) error {
		first := layout.NewMap(g)
		first.Claim = claim
		_, err := layout.CreateMap(dev, m.Cluster, firstEpoch, first)
		if !errors.Is(err, layout.ErrExists) {
			return err
		}
		current, stamp, err := layout.ReadMap(dev, m.Cluster)
		if err == nil {
			err = m.reigns(current, stamp)
		}
		return err
	})
}
