// SPDX-License-Identifier: Apache-2.0

// Package master is what the one host does that a thin cluster's membership
// nominated: it alone changes the map, and LVM's metadata of the shared group.
//
// A host becomes master by Claim, with an epoch that nobody had before it. Each
// change is made under a lock of this host, on the map as it is on the disk now,
// and counts when the map is committed; whatever has to be on the disk for it
// (a new UUID.thin, a mapping) is written before, and what is not needed any more
// is removed after. So a crash leaves the old state or the new one, with volumes
// that nobody refers to at worst, which Collect removes. A host that has been
// replaced finds a later epoch on the disk and is refused.
//
// Hosts ask for what they need (package request): Serve answers what lies in their
// slots, Channel asks on the master's own host. The rest is for its operator and
// the membership service: Init, Join, Fence, Recover, Grow, Collect, RemoveHost,
// Check and RebuildMap. Anybody who sees the group may ask for the Status.
package master

import (
	"context"
	"errors"
	"log/slog"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/command"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lock"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// Master does the work of a cluster's master on this host.
type Master struct {
	Group   group.Group
	Cluster uuid.UUID
	Name    string // of the cluster, as its definition has it
	Layout  host.Layout
	Run     command.Runner // for thin_repair
	Log     *slog.Logger
}

// session is the map during one change, under the lock.
type session struct {
	*Master
	dev   group.Volume
	m     layout.Map
	stamp layout.Stamp
}

// locked does something that no other verb of this host may do at the same time.
func (m *Master) locked(ctx context.Context, do func() error) error {
	if err := atomicfile.MkdirAll(m.Layout.Locks(), 0o755); err != nil {
		return failure.Denied(err)
	}
	l, err := lock.Acquire(ctx, m.Layout.Locks(), "thin-master-"+m.Name)
	if err != nil {
		return err
	}
	defer l.Release()
	return do()
}

// change does something to the map, as the master that this host is.
func (m *Master) change(ctx context.Context, do func(*session) error) error {
	return m.locked(ctx, func() error {
		return m.read(ctx, true, func(s *session) error {
			if err := m.reigns(s.m, s.stamp); err != nil {
				return err
			}
			own := *m // for the time of this change
			own.Group = group.Guarded(m.Group, s.still)
			s.Master = &own
			return do(s)
		})
	})
}

// watch looks at the map, as the master that this host is. It costs no command of
// LVM, as that of read with write may.
func (m *Master) watch(ctx context.Context, do func(*session) error) error {
	return m.locked(ctx, func() error {
		return m.read(ctx, false, func(s *session) error {
			if err := m.reigns(s.m, s.stamp); err != nil {
				return err
			}
			return do(s)
		})
	})
}

// read opens the map for the time of do.
func (m *Master) read(ctx context.Context, write bool, do func(*session) error) error {
	began := false
	err := group.With(ctx, m.Group, layout.MapName, write, func(dev group.Volume) error {
		current, stamp, err := layout.ReadMap(dev, m.Cluster)
		if err != nil {
			return err
		}
		began = true
		s := &session{Master: m, dev: dev, m: current, stamp: stamp}
		err = do(s)
		if s.dev != dev { // it was extended; the caller closes the one it opened
			err = errors.Join(err, s.dev.Close())
		}
		return err
	})
	if !began {
		err = group.Lost(ctx, m.Group, err)
	}
	return err
}

// commit makes a map the one that counts.
func (s *session) commit(ctx context.Context, next layout.Map) error {
	if err := failpoint.Hit("thin.master.commit"); err != nil {
		return err
	}
	stamp, err := layout.CommitMap(s.dev, s.Cluster, s.stamp, s.stamp.Epoch, next)
	if errors.Is(err, failure.NoSpace) {
		if err = s.widen(ctx); err == nil {
			stamp, err = layout.CommitMap(s.dev, s.Cluster, s.stamp, s.stamp.Epoch, next)
		}
	}
	if err != nil {
		return err
	}
	s.m, s.stamp = next, stamp
	return failpoint.Hit("thin.master.committed")
}

// widen makes room for a map that has become longer.
func (s *session) widen(ctx context.Context) error {
	if err := s.Group.Extend(ctx, layout.MapName, 2*uint64(s.dev.Size())); err != nil {
		return err
	}
	dev, err := s.Group.Open(ctx, layout.MapName, true)
	if err != nil {
		return err
	}
	s.dev = dev
	return nil
}

// still fails if the map is not the one any more that this change began with. It is
// asked before something is overwritten that has no epoch of its own, and before each
// change of LVM's metadata (group.Guarded).
func (s *session) still() error {
	now, stamp, err := layout.ReadMap(s.dev, s.Cluster)
	if err != nil {
		return err
	}
	if err := s.reigns(now, stamp); err != nil {
		return err
	}
	if stamp != s.stamp {
		return failure.New(failure.Temporary, "map of the cluster: %v is on the disk, not %v", stamp, s.stamp)
	}
	return nil
}

// hostNamed finds the host with a name or UUID that has a record now.
func (s *session) hostNamed(name string) (layout.HostRecord, error) {
	var found layout.HostRecord
	for _, h := range s.m.Hosts {
		// Of several with its name the last is the one that is meant.
		if h.Name == name || h.UUID.String() == name {
			found = h
		}
	}
	if found.Number == 0 {
		err := failure.New(failure.NotFound, "host %s: the cluster has none", name)
		return found, failure.Hint(err, "see `diskhook thin status`")
	}
	return found, nil
}
