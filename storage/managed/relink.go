// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/managed/database"
)

// Relink is Attach for a domain that runs and has the volume open, whatever
// became of the storage meanwhile: it makes the link again, and the claim, and
// undoes nothing. A volume of which this boot knows nothing is attached.
func (s *Service) Relink(ctx context.Context, r Request) error {
	if err := CheckID(r.ID); err != nil {
		return err
	}
	known, err := s.relink(ctx, r)
	if err == nil && !known {
		r.running = true
		_, err = s.Attach(ctx, r)
		return err
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", r.ID, err)
	}
	return nil
}

// relink works by the row alone. false: there is none of this boot.
func (s *Service) relink(ctx context.Context, r Request) (known bool, err error) {
	a, err := s.attaching(r)
	if err != nil {
		return false, err
	}
	unlock, err := s.lockVolume(ctx, r.ID)
	if err != nil {
		return false, err
	}
	defer unlock()
	row, err := s.row(ctx, r.ID)
	if err != nil || row == nil || stale(*row, a.boot) {
		return false, err
	}
	if err := a.update(ctx, func(tx *database.Tx) error { return a.claim(tx, false) }); err != nil {
		return true, err
	}
	is, err := here(ctx, row.Path)
	if err == nil && is {
		err = a.stillItself(ctx, row.Path)
	}
	switch {
	case err != nil:
		return true, err
	case !is:
		err := failure.New(failure.Temporary, "its device %s does not answer", row.Path)
		return true, failure.Hint(err, "bring its storage back; the domain keeps it")
	}
	return true, a.link(a.ID, row.Path)
}
