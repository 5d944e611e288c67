// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// Cluster is one that volumes are exported from, by any host that sees its volume
// group.
type Cluster struct {
	UUID  uuid.UUID
	Group group.Group
}

// Export is the stream of a volume, by its name or UUID. live tells what this host
// maps for a volume that is attached to it, with the record that it goes with;
// without it, or where another host has the volume, that is a failure.Conflict.
func (c Cluster) Export(ctx context.Context, volume string, live LiveMapping) (Stream, error) {
	m, _, err := cluster.Map(ctx, c.Group, c.UUID)
	if err != nil {
		return Stream{}, err
	}
	v, err := cluster.Volume(m, volume)
	if err != nil {
		return Stream{}, err
	}
	var mapping layout.Mapping
	switch {
	case !v.State.On():
		err = group.With(ctx, c.Group, layout.Thin.Name(v.UUID), false, func(dev group.Volume) error {
			mapping, err = layout.ReadMapping(dev, c.UUID, v.UUID, v.Stored())
			return err
		})
	case live == nil:
		err = failure.New(failure.Conflict, "it is at host %s, which alone knows its blocks", cluster.NameOf(m, v.Host))
		err = failure.Hint(err, "run the verb on that host, or `diskhook thin detach %s` there first", v.Name)
	default:
		v, mapping, err = live(ctx, v)
	}
	if err != nil {
		return Stream{}, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return Of(c.UUID, m.Geometry, v, mapping)
}

// LiveMapping tells what this host maps for a volume that is attached to it.
type LiveMapping func(ctx context.Context, v layout.VolumeRecord) (layout.VolumeRecord, layout.Mapping, error)

// Read opens what is behind a stream's addresses for the time of do. A stream that
// does not fit is refused before, and after it too: what do has read then is not the
// volume's, and has to be thrown away.
func (c Cluster) Read(ctx context.Context, s Stream, do func(Contents) error) error {
	fits := func() error {
		m, _, err := cluster.Map(ctx, c.Group, c.UUID)
		if err == nil {
			err = s.Fits(c.UUID, m)
		}
		return err
	}
	if err := fits(); err != nil {
		return err
	}
	err := group.With(ctx, c.Group, layout.DataName, false, func(dev group.Volume) error {
		g, err := layout.ReadLabel(dev, c.UUID)
		if err != nil && !errors.Is(err, layout.ErrGrown) {
			return err
		}
		if g.BlockSize != s.Mapping.BlockSize {
			return failure.New(failure.Problems, "%s: it has blocks of %d bytes, and its volume %s blocks of %d", dev.Name(), g.BlockSize, s.Name, s.Mapping.BlockSize)
		}
		return do(s.Contents(dev))
	})
	if err != nil {
		return err
	}
	return fits()
}
