// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/thin/layout"
)

var (
	// ErrStream says that something is no whole stream.
	ErrStream = errors.New("no stream that can be relied on")
	// ErrFit says that a stream is not one of the cluster as it is now.
	ErrFit = errors.New("the stream does not fit")
)

// State says what a stream's addresses are worth.
type State string

// The states.
const (
	// Offline volumes do not change as long as their generation stays.
	Offline State = "offline"
	// Suspect ones are offline, and what their host wrote last may be lost.
	Suspect State = "suspect"
	// Live ones are attached: the addresses are those of a moment, and the data
	// behind them goes on changing.
	Live State = "live"
)

// Stream is a volume's identity and its physical block addresses.
type Stream struct {
	Cluster    uuid.UUID
	Volume     uuid.UUID
	Name       string
	Generation uint64
	State      State
	DataBlocks uint64 // of the cluster's data volume, which has the mapping's block size
	Mapping    layout.Mapping
}

// Of makes the stream of a volume. mapping is what UUID.thin has of it in the
// generation that counts, or what its host has right now.
func Of(cluster uuid.UUID, data layout.Geometry, v layout.VolumeRecord, mapping layout.Mapping) (Stream, error) {
	s := Stream{Cluster: cluster, Volume: v.UUID, Name: v.Name, Generation: v.Generation, State: Offline, DataBlocks: data.Blocks, Mapping: mapping}
	switch {
	case v.State.On():
		s.State = Live
	case v.State == layout.Suspect:
		s.State = Suspect
	}
	if mapping.BlockSize != data.BlockSize || mapping.Number != v.Number {
		return Stream{}, fmt.Errorf("volume %s: number %d in blocks of %d bytes has a mapping of number %d in blocks of %d",
			v.Name, v.Number, data.BlockSize, mapping.Number, mapping.BlockSize)
	}
	if err := s.check(); err != nil {
		return Stream{}, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	return s, nil
}

// check says which rule a stream breaks.
func (s Stream) check() error {
	switch {
	case s.Cluster == uuid.Nil || s.Volume == uuid.Nil:
		return errors.New("cluster or volume without a UUID")
	case !layout.ValidName(s.Name):
		return fmt.Errorf("the name %q", s.Name)
	case s.Generation == 0:
		return errors.New("generation 0")
	case s.State != Offline && s.State != Suspect && s.State != Live:
		return fmt.Errorf("the state %q", s.State)
	}
	if err := s.Mapping.Check(); err != nil {
		return err
	}
	for _, r := range s.Mapping.Runs {
		if r.Physical+r.Length > s.DataBlocks {
			return fmt.Errorf("blocks %d+%d of %d data blocks", r.Physical, r.Length, s.DataBlocks)
		}
	}
	return nil
}

// Fits refuses with ErrFit to read a stream's data from the data volume of a
// cluster that has this map now: another cluster, a volume that was attached,
// changed or deleted since, blocks that are somebody else's.
func (s Stream) Fits(cluster uuid.UUID, m layout.Map) error {
	refuse := func(kind *failure.Kind, way, format string, args ...any) error {
		err := failure.New(kind, "stream of volume %s: %w: "+format, append([]any{s.Name, ErrFit}, args...)...)
		return failure.Hint(err, "%s", way)
	}
	again := fmt.Sprintf("export it again: `diskhook thin export %s`", s.Name)
	switch {
	case s.Cluster != cluster:
		return refuse(failure.Precondition, "name the cluster that it was exported from: `diskhook thin import --from CLUSTER`", "it is of cluster %s, and this is %s", s.Cluster, cluster)
	case s.Mapping.BlockSize != m.BlockSize || s.DataBlocks > m.Blocks:
		return refuse(failure.Precondition, again, "%d data blocks of %d bytes, the cluster has %d of %d", s.DataBlocks, s.Mapping.BlockSize, m.Blocks, m.BlockSize)
	case s.State == Live:
		return refuse(failure.Conflict, fmt.Sprintf("run `diskhook thin snapshot %s NEW` and export that; or `diskhook thin detach %s`, and export it again", s.Name, s.Name),
			"it was exported while a host wrote to the volume")
	}
	for _, v := range m.Volumes {
		if v.UUID != s.Volume {
			continue
		}
		switch {
		case v.State.On():
			return refuse(failure.Conflict, fmt.Sprintf("run `diskhook thin detach %s` and export it again", v.Name), "the volume is attached to a host now")
		case v.Generation != s.Generation || v.Number != s.Mapping.Number || v.Size != s.Mapping.Size:
			return refuse(failure.Conflict, again, "it is of generation %d, and the volume has %d now", s.Generation, v.Generation)
		}
		return s.owned(m, refuse, again)
	}
	return refuse(failure.Conflict, "see `diskhook thin status`", "there is no volume %s any more", s.Volume)
}

func (s Stream) owned(m layout.Map, refuse func(*failure.Kind, string, string, ...any) error, again string) error {
	bases := map[uint32]bool{}
	for _, r := range s.Mapping.Runs {
		bases[r.Base] = true
	}
	for base := range bases {
		owner := layout.Owner{Kind: layout.OfBase, Number: base}
		if base == 0 {
			owner = layout.Owner{Kind: layout.OfVolume, Number: s.Mapping.Number}
		}
		if strange := s.Mapping.Of(base).Minus(m.Owned(owner)); !strange.Empty() {
			return refuse(failure.Conflict, again, "%d of its blocks are not the volume's: %v", strange.Blocks(), strange)
		}
	}
	return nil
}
