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
// disk has its epoch tells it that it still is master.
type reign struct {
	Cluster uuid.UUID `json:"cluster"`
	Epoch   uint64    `json:"epoch"` // that it claimed, or is about to claim
}

func (m *Master) reignPath() string {
	return filepath.Join(m.Layout.State(), "thin", m.Name+".json")
}

// remembered is the last epoch of this host; 0 if it never was master.
func (m *Master) remembered() (uint64, error) {
	b, err := os.ReadFile(m.reignPath())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, failure.Denied(err)
	}
	var r reign
	if err := json.Unmarshal(b, &r); err != nil {
		err := failure.New(failure.Problems, "%s: %w", m.reignPath(), err)
		return 0, failure.Hint(err, "remove it, then have this host nominated anew: `diskhook thin on-master`")
	}
	if r.Cluster != m.Cluster {
		return 0, nil // a cluster of this name that is no more
	}
	return r.Epoch, nil
}

func (m *Master) remember(epoch uint64) error {
	if err := atomicfile.MkdirAll(filepath.Dir(m.reignPath()), 0o700); err != nil {
		return failure.Denied(err)
	}
	return failure.Denied(atomicfile.WriteJSON(m.reignPath(), reign{m.Cluster, epoch}, 0o600))
}

// deposed says that another host is master.
func deposed(disk layout.Stamp, epoch uint64) error {
	err := failure.New(failure.Conflict, "map of the cluster: %w: %v is on the disk, this host was master in epoch %d", layout.ErrStale, disk, epoch)
	return failure.Hint(err, "run it on the host that is master; if there is none, nominate this one with `diskhook thin on-master --epoch %d`", disk.Epoch+1)
}

// reigns fails unless this host is master.
func (m *Master) reigns(disk layout.Stamp) error {
	epoch, err := m.remembered()
	switch {
	case err != nil:
		return err
	case epoch == 0:
		err := failure.New(failure.Conflict, "cluster %s: %w: this host was never its master", m.Name, layout.ErrStale)
		return failure.Hint(err, "run it on the host that is master; if there is none, nominate this one with `diskhook thin on-master --epoch %d`", disk.Epoch+1)
	case epoch != disk.Epoch:
		return deposed(disk, epoch)
	}
	return nil
}

// Reigns says whether this host is the master, by what is on the disk now.
func (m *Master) Reigns(ctx context.Context) (epoch uint64, is bool, err error) {
	err = m.read(ctx, false, func(s *session) error {
		epoch = s.stamp.Epoch
		switch err := m.reigns(s.stamp); {
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
// above the disk's is layout.ErrStale, unless it is this host's own.
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
	if last == epoch && stamp.Epoch == epoch {
		return epoch, m.confirm(dev, stamp, current)
	}
	if stamp.Epoch >= epoch {
		err := failure.New(failure.Conflict, "claim epoch %d: %w: %v is on the disk", epoch, layout.ErrStale, stamp)
		return 0, failure.Hint(err, "if this host is to be the master, and nobody else can be any more, run `diskhook thin on-master --epoch %d`", stamp.Epoch+1)
	}
	// First, so that a claim which stops half-way is known for this host's own.
	if err := m.remember(epoch); err != nil {
		return 0, err
	}
	if err := failpoint.Hit("thin.master.claim"); err != nil {
		return 0, err
	}
	if _, _, err := layout.Claim(dev, m.Cluster, epoch); err != nil {
		return 0, fmt.Errorf("claim epoch %d: %w", epoch, err)
	}
	return epoch, failpoint.Hit("thin.master.claimed")
}

// confirm ends a claim that may have stopped between its two commits: both copies
// have to have the epoch (layout.Claim).
func (m *Master) confirm(dev group.Volume, stamp layout.Stamp, current layout.Map) error {
	_, err := layout.CommitMap(dev, m.Cluster, stamp, stamp.Epoch, current)
	return err
}
