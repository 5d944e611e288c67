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
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/metadata"
)

// Newcomer is a host that is to join.
type Newcomer struct {
	UUID uuid.UUID
	Name string
	// Rejoin takes back one that was recovered, or that left. Its pool must be
	// stopped: what it wrote to its metadata is overwritten.
	Rejoin bool
	// Metadata is how long each of its two windows for metadata is at least, in
	// bytes; 0 is what the cluster's size asks for.
	Metadata uint64
}

// Join makes a host a member: a record in the map, its UUID.host, and in that a
// header and metadata in which disk 0 has every block. The host has only to start
// its pool. Done again it is the same; the number is the host's.
func (m *Master) Join(ctx context.Context, n Newcomer) (uint32, error) {
	var number uint32
	err := m.change(ctx, func(s *session) error {
		next, given, err := ledger.Join(s.m, n.UUID, n.Name)
		if err != nil {
			return err
		}
		number = given
		if err := s.Group.Create(ctx, layout.Host.Name(n.UUID), hostBytes(s.m.Blocks, n.Metadata)); err != nil {
			return err
		}
		if slices.Equal(next.Hosts, s.m.Hosts) {
			return s.settle(ctx, n, number)
		}
		if err := s.clear(ctx, n); err != nil {
			return err
		}
		if err := s.commit(ctx, next); err != nil {
			return err
		}
		return s.settle(ctx, n, number)
	})
	return number, err
}

// Former refuses a host that was in the cluster before, and may have its pool still.
func Former(h layout.HostRecord) error {
	err := failure.New(failure.Conflict, "host %s: it was in the cluster before, as host %d", h.Name, h.Number)
	return failure.Hint(err, "stop its pool with `diskhook thin stop` on it, or reboot it; then run `diskhook thin init-host --rejoin %s`", h.Name)
}

// hostBytes is how long a UUID.host has to be in a cluster of so many blocks. window is
// how long each of its windows is to be, 0 as long as metadata may become.
func hostBytes(blocks, window uint64) uint64 {
	if window == 0 {
		// Every block is mapped by disk 0 or a volume, and those of bases by both;
		// the kernel needs room to split and copy besides.
		packed := metadata.Content{DataBlocks: blocks, Devices: 64, Mappings: blocks}.PackedBlocks()
		window = max(4<<20, 3*packed*metadata.BlockSize)
	}
	window = (min(max(window, layout.MinWindow), layout.MaxWindow) + metadata.BlockSize - 1) / metadata.BlockSize * metadata.BlockSize
	return layout.WindowsAt + 2*window
}

// clear empties the UUID.host of a host that has no part in the cluster now, before
// it gets one.
func (s *session) clear(ctx context.Context, n Newcomer) error {
	return s.onHost(ctx, n.UUID, true, func(dev group.Volume) error {
		header, _, err := layout.ReadHost(dev, s.Cluster, n.UUID)
		switch {
		case errors.Is(err, layout.ErrEmpty):
			return nil
		case err != nil && !errors.Is(err, layout.ErrDamaged) && !errors.Is(err, layout.ErrInvalid):
			return err
		case !n.Rejoin:
			return Former(layout.HostRecord{Name: n.Name, Number: header.Number})
		}
		if err := s.still(); err != nil {
			return err
		}
		return layout.Wipe(dev)
	})
}

// settle writes what a member begins with, unless it is there.
func (s *session) settle(ctx context.Context, n Newcomer, number uint32) error {
	return s.onHost(ctx, n.UUID, true, func(dev group.Volume) error {
		header, _, err := layout.ReadHost(dev, s.Cluster, n.UUID)
		if err == nil && header.Number != number {
			err = failure.New(failure.Problems, "%s: it is of host %d, %s is host %d", dev.Name(), header.Number, n.Name, number)
			return failure.Hint(err, "fence the host, run `diskhook thin recover %s`, then `diskhook thin init-host --rejoin %s`", n.Name, n.Name)
		}
		if !errors.Is(err, layout.ErrEmpty) {
			return err
		}
		windows, err := layout.WindowsFor(dev)
		if err != nil {
			return err
		}
		plan, err := handover.Compose(s.m, number, layout.FirstImage, nil)
		if err != nil {
			return err
		}
		if err := compose(plan, window{dev, windows[0]}); err != nil {
			return err
		}
		if err := failpoint.Hit("thin.master.join.metadata"); err != nil {
			return err
		}
		first := layout.HostHeader{Geometry: s.m.Geometry, Number: number, Name: n.Name, Image: layout.FirstImage, Windows: windows}
		_, err = layout.CreateHost(dev, s.Cluster, n.UUID, s.stamp.Epoch, first)
		return err
	})
}

// onHost opens a UUID.host for the time of do.
func (m *Master) onHost(ctx context.Context, id uuid.UUID, write bool, do func(group.Volume) error) error {
	return group.With(ctx, m.Group, layout.Host.Name(id), write, do)
}
