// SPDX-License-Identifier: Apache-2.0

package master

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// reign is what this host remembers of having been nominated, in a file: that the
// disk has its claim tells it that it still is master.
type reign struct {
	Cluster uuid.UUID `json:"cluster"`
	Epoch   uint64    `json:"epoch"` // that it claimed, or is about to claim
	// Claim is what the map has of it. An epoch would not do: of a claim that failed
	// the number is free, and another host may be given it.
	Claim uuid.UUID `json:"claim"`
	// Down says that it does not act as the master: the claim has not ended, or the
	// host stepped down since.
	Down bool `json:"down,omitempty"`
}

func (m *Master) reignPath() string {
	return filepath.Join(m.Layout.State(), "thin", m.Name+".json")
}

// remembered is the last reign of this host, the zero value if it never had one.
func (m *Master) remembered() (reign, error) {
	b, err := os.ReadFile(m.reignPath())
	if errors.Is(err, fs.ErrNotExist) {
		return reign{}, nil
	}
	if err != nil {
		return reign{}, failure.Denied(err)
	}
	var r reign
	if err := json.Unmarshal(b, &r); err != nil {
		err := failure.New(failure.Problems, "%s: %w", m.reignPath(), err)
		return reign{}, failure.Hint(err, "remove it, then have this host nominated anew: `diskhook thin on-master`")
	}
	if r.Cluster != m.Cluster {
		return reign{}, nil // a cluster of this name that is no more
	}
	return r, nil
}

func (m *Master) remember(r reign) error {
	if err := atomicfile.MkdirAll(filepath.Dir(m.reignPath()), 0o700); err != nil {
		return failure.Denied(err)
	}
	r.Cluster = m.Cluster
	return failure.Denied(atomicfile.WriteJSON(m.reignPath(), r, 0o600))
}

// deposed says that another host is master.
func deposed(disk layout.Stamp, epoch uint64) error {
	err := failure.New(failure.Conflict, "map of the cluster: %w: %v is on the disk, this host was master in epoch %d", layout.ErrStale, disk, epoch)
	return failure.Hint(err, "run it on the host that is master; if there is none, nominate this one with `diskhook thin on-master --epoch %d`", disk.Epoch+1)
}

// reigns fails unless this host is master, of the map that is on the disk.
func (m *Master) reigns(disk layout.Map, stamp layout.Stamp) error {
	last, err := m.remembered()
	why := "this host was never its master"
	switch {
	case err != nil:
		return err
	case last.Epoch != 0 && (last.Epoch != stamp.Epoch || last.Claim != disk.Claim):
		return deposed(stamp, last.Epoch)
	case last.Epoch != 0 && !last.Down:
		return nil
	case last.Down:
		why = "this host has stepped down"
	}
	err = failure.New(failure.Conflict, "cluster %s: %w", m.Name, notMaster(why))
	return failure.Hint(err, "run it on the host that is master; if there is none, nominate this one with `diskhook thin on-master --epoch %d`", stamp.Epoch+1)
}

// notMaster is layout.ErrStale where no other master is known.
type notMaster string

func (e notMaster) Error() string { return string(e) }

// Is says that it is an error of its kind.
func (notMaster) Is(target error) bool { return target == layout.ErrStale }

// Reigns says whether this host is the master, by what is on the disk now.
func (m *Master) Reigns(ctx context.Context) (epoch uint64, is bool, err error) {
	err = m.read(ctx, false, func(s *session) error {
		epoch = s.stamp.Epoch
		switch err := m.reigns(s.m, s.stamp); {
		case err == nil:
			is = true
		case !errors.Is(err, failure.Conflict):
			return err
		}
		return nil
	})
	return epoch, is, err
}

// Claim makes this host the master of an epoch, which the membership service gives
// to one host, once; 0 is the next one, where an operator does its work. Whoever
// was master before must not be able to write any more. An epoch that is not
// above the disk's is layout.ErrStale, unless it is this host's own. As long as it
// has not succeeded, this host is not the master, and does not become it by what
// happens later.
func (m *Master) Claim(ctx context.Context, epoch uint64) (uint64, error) {
	err := m.locked(ctx, func() error {
		return group.With(ctx, m.Group, layout.MapName, true, func(dev group.Volume) error {
			var err error
			epoch, err = m.claim(dev, epoch)
			return err
		})
	})
	return epoch, err
}

func (m *Master) claim(dev group.Volume, epoch uint64) (uint64, error) {
	current, stamp, err := layout.ReadMap(dev, m.Cluster)
	if err != nil {
		return 0, err
	}
	if epoch == 0 {
		epoch = stamp.Epoch + 1
	}
	last, err := m.remembered()
	if err != nil {
		return 0, err
	}
	if last.Epoch == epoch && stamp.Epoch == epoch && last.Claim == current.Claim {
		if err := m.confirm(dev, stamp, current); err != nil {
			return 0, err
		}
		return epoch, m.remember(reign{Epoch: epoch, Claim: last.Claim})
	}
	if stamp.Epoch >= epoch {
		err := failure.New(failure.Conflict, "claim epoch %d: %w: %v is on the disk", epoch, layout.ErrStale, stamp)
		return 0, failure.Hint(err, "if this host is to be the master, and nobody else can be any more, run `diskhook thin on-master --epoch %d`", stamp.Epoch+1)
	}
	// First, so that a claim which stops half-way is known for this host's own.
	next := reign{Epoch: epoch, Claim: uuid.New(), Down: true}
	if err := m.remember(next); err != nil {
		return 0, err
	}
	if err := failpoint.Hit("thin.master.claim"); err != nil {
		return 0, err
	}
	if _, _, err := layout.Claim(dev, m.Cluster, epoch, next.Claim); err != nil {
		return 0, fmt.Errorf("claim epoch %d: %w", epoch, err)
	}
	if err := failpoint.Hit("thin.master.claimed"); err != nil {
		return 0, err
	}
	next.Down = false
	return epoch, m.remember(next)
}

// confirm ends a claim that may have stopped between its two commits: both copies
// have to have the epoch (layout.Claim).
func (m *Master) confirm(dev group.Volume, stamp layout.Stamp, current layout.Map) error {
	_, err := layout.CommitMap(dev, m.Cluster, stamp, stamp.Epoch, current)
	return err
}

// Resign has this host change nothing any more as the master, from when it returns,
// until it claims an epoch: its last one too, if nobody had another since. The disk
// is not asked. One that is no master is fine.
func (m *Master) Resign(ctx context.Context) error {
	return m.locked(ctx, func() error {
		last, err := m.remembered()
		if err != nil || last.Epoch == 0 || last.Down {
			return err
		}
		last.Down = true
		return m.remember(last)
	})
}
