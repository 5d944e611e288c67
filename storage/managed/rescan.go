// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"errors"
	"fmt"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Rescan has the kernel ask the storage again how large an attached volume is,
// which has been enlarged there, and returns its size before and after, in
// bytes. It may be in use. One that has become another or smaller is a
// failure.Conflict, one that is not attached a failure.NotFound.
func (s *Service) Rescan(ctx context.Context, id string) (before, after int64, err error) {
	if err := CheckID(id); err != nil {
		return 0, 0, err
	}
	before, after, err = s.rescan(ctx, id)
	if err != nil {
		return 0, 0, fmt.Errorf("volume %s: %w", id, err)
	}
	return before, after, nil
}

func (s *Service) rescan(ctx context.Context, id string) (before, after int64, err error) {
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	defer unlock()
	row, err := s.attachedNow(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	c, err := s.connector(*row)
	if err != nil {
		return 0, 0, err
	}
	was, err := s.look(ctx, row.Path)
	if err != nil {
		return 0, 0, err
	}
	if err := c.Rescan(ctx, outcome(*row)); err != nil {
		return 0, 0, err
	}
	s.Host.Settle(ctx)
	now, err := s.look(ctx, row.Path)
	if err != nil {
		return 0, 0, err
	}
	if now.WWN != was.WWN || now.Size < was.Size {
		err := failure.New(failure.Conflict, "%w: it was %q with %d bytes, and is %q with %d", connector.ErrMismatch, was.WWN, was.Size, now.WWN, now.Size)
		return 0, 0, failure.Hint(err, "stop what uses it and run `diskhook volume detach %s`, before anything is written; then see what the storage has made of it", id)
	}
	return was.Size, now.Size, s.grown(ctx, *row, now)
}

// attachedNow is the row of a volume that is attached, in this boot.
func (s *Service) attachedNow(ctx context.Context, id string) (*database.Volume, error) {
	boot, err := s.Boot()
	if err != nil {
		return nil, err
	}
	row, err := s.row(ctx, id)
	if err == nil && (row == nil || row.Path == "" || stale(*row, boot)) {
		err = failure.Hint(failure.New(failure.NotFound, "it is not attached"), "run `diskhook volume attach %s`, which looks afresh", id)
	}
	return row, err
}

func (s *Service) look(ctx context.Context, path string) (connector.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return command.Abandon(ctx, func() (connector.Identity, error) { return s.Host.Look(path) })
}

// grown has a volume that is attached by its definition keep its new size: it
// must not be smaller ever after.
func (s *Service) grown(ctx context.Context, row database.Volume, now connector.Identity) error {
	info, err := s.definition(row.ID)
	a := &attaching{Service: s, Request: Request{ID: row.ID}, info: info}
	switch {
	case errors.Is(err, failure.NotFound):
		return nil
	case err != nil:
		return err
	case !a.same(row):
		return nil
	}
	return s.update(ctx, func(tx *database.Tx) error { return tx.SetIdentity(a.identity(now)) })
}
