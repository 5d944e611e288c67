// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/handover"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
	"diskhook/storage/thin/request"
)

// Snapshot makes a volume, offline, that has what a volume of this host has at one
// moment. The guest is held back for as long as a message to the kernel takes, and
// shares what it had with the new volume from then on. It is a snapshot and a
// clone at once: whoever attaches it may write to it.
func (c *Member) Snapshot(ctx context.Context, of string, id uuid.UUID, name string) error {
	err := c.do(ctx, c.begin, func(s *session) error {
		if err := s.need(ctx); err != nil {
			return err
		}
		v, err := s.volume(of)
		if err != nil {
			return err
		}
		if done, err := s.wasMade(v, name, true); done || err != nil || made(s.m, id, name) {
			return err
		}
		if v.State != layout.Attached || v.Host != s.header.Number {
			err := failure.New(failure.Precondition, "it is not attached to this host")
			return failure.Hint(err, "run `diskhook thin clone %s %s` while it is offline, or run this on the host that has it", of, name)
		}
		return s.snapshot(ctx, v, id, name)
	})
	if err != nil {
		return fmt.Errorf("snapshot of %s: %w", of, err)
	}
	return nil
}

func (s *session) snapshot(ctx context.Context, v layout.VolumeRecord, id uuid.UUID, name string) error {
	if s.pending != nil {
		return s.pending
	}
	held, err := s.withheld(ctx)
	if err != nil {
		return err
	}
	number, err := held.next()
	if err != nil {
		return err
	}
	if err := s.share(context.WithoutCancel(ctx), v, number); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.snapshot.shared"); err != nil {
		return err
	}
	// The device of that number stays parked: it keeps the blocks from being
	// written in place or freed, here.
	var m layout.Mapping
	err = s.read(ctx, func(r *metadata.Reader) (err error) {
		m, err = handover.SnapshotMapping(r, s.m, v, number)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.store(ctx, v, m); err != nil {
		return err
	}
	if err := failpoint.Hit("thin.snapshot.stored"); err != nil {
		return err
	}
	_, err = s.ask(ctx, request.CloneAttached{Of: v.Number, ID: id, Name: name})
	return err
}

// share makes a snapshot of a volume's device, which has to be suspended for it.
func (s *session) share(ctx context.Context, v layout.VolumeRecord, number uint32) error {
	name := s.deviceName(v.Name)
	if err := s.Mapper.Suspend(ctx, name, true); err != nil {
		return err
	}
	err := s.Mapper.Message(ctx, s.poolName(s.header.Active), devmapper.CreateSnap(number, v.Number))
	return errors.Join(err, s.Mapper.Resume(ctx, name))
}

// Mapping is what a volume of this host maps at this moment. The guest goes on:
// blocks that are listed may be written to, or given up, the moment after; of
// contents that stay as they are, make a snapshot.
func (c *Member) Mapping(ctx context.Context, name string) (layout.Mapping, layout.VolumeRecord, error) {
	var m layout.Mapping
	var v layout.VolumeRecord
	err := c.do(ctx, c.begin, func(s *session) (err error) {
		if v, err = s.volume(name); err != nil {
			return err
		}
		if v.Host != s.header.Number {
			err := failure.New(failure.Conflict, "it is at host %s, which alone knows its blocks", s.hostName(v.Host))
			return failure.Hint(err, "run the verb on that host, or `diskhook thin detach %s` there first", name)
		}
		m, err = s.leaving(ctx, v)
		return err
	})
	return m, v, err
}
