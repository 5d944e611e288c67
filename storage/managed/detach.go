// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"fmt"

	"diskhook/storage/failpoint"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Detach takes a volume away, whoever attached it. A volume that is not
// attached is no error. One that a domain of this boot has claimed is a
// failure.Conflict unless domain is that domain, one that somebody has open is
// a failure.Conflict in any case. It goes on where the device has vanished,
// and a call that failed or crashed is finished by the next.
func (s *Service) Detach(ctx context.Context, id, domain string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return s.detach(ctx, id, domain, func(database.Volume) (bool, error) { return true, nil })
}

// detach does nothing where still, asked while nobody else works on the
// volume, does not want it any more.
func (s *Service) detach(ctx context.Context, id, domain string, still func(database.Volume) (bool, error)) error {
	if err := s.detachLocked(ctx, id, domain, still); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}

func (s *Service) detachLocked(ctx context.Context, id, domain string, still func(database.Volume) (bool, error)) error {
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	boot, err := s.Boot()
	if err != nil {
		return err
	}
	row, err := s.row(ctx, id)
	if err != nil {
		return err
	}
	if row != nil {
		if wanted, err := still(*row); err != nil || !wanted {
			return err
		}
		claims, err := s.claims(ctx)
		if err != nil {
			return err
		}
		if c, ok := claims[id]; ok && c.Boot == boot && c.Domain != domain {
			return claimed(c)
		}
		if err := s.disconnect(ctx, *row); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("detach.disconnected"); err != nil {
		return err
	}
	if err := s.unlink(id); err != nil {
		return err
	}
	if err := failpoint.Hit("detach.unlinked"); err != nil {
		return err
	}
	return s.update(ctx, func(tx *database.Tx) error { return tx.Forget(id) })
}

// disconnect has the connector take away what the row tells of. The caller has
// the volume's lock.
func (s *Service) disconnect(ctx context.Context, row database.Volume) error {
	info, err := connector.ParseInfo(row.Connection)
	if err != nil {
		return err
	}
	c, err := s.Host.Open(row.ID, info)
	if err != nil {
		return err
	}
	unshare, err := s.lockShared(ctx, c)
	if err != nil {
		return err
	}
	defer unshare()
	boot, err := s.Boot()
	if err != nil {
		return err
	}
	var rows []database.Volume
	if err := s.withDatabase(ctx, func(db *database.DB) (err error) {
		rows, err = db.Volumes(ctx)
		return err
	}); err != nil {
		return err
	}
	var others []connector.Connector
	for _, other := range s.open(rows, row.ID, boot) {
		others = append(others, other)
	}
	return c.Detach(ctx, connector.Attachment{Path: row.Path, MultipathID: row.MultipathID, JSON: row.Attachment}, others)
}

func (s *Service) claims(ctx context.Context) (all map[string]database.Claim, err error) {
	err = s.withDatabase(ctx, func(db *database.DB) (err error) {
		all, err = db.Claims(ctx)
		return err
	})
	return all, err
}

// Release ends the domain's claim on a volume, and detaches it if it was
// attached for that claim. Without a claim of the domain nothing happens.
func (s *Service) Release(ctx context.Context, id, domain string) error {
	if err := checkID(id); err != nil {
		return err
	}
	claims, err := s.claims(ctx)
	if err != nil {
		return err
	}
	c, ok := claims[id]
	switch {
	case !ok || c.Domain != domain:
		return nil
	case c.Attached:
		return s.Detach(ctx, id, domain)
	}
	return s.update(ctx, func(tx *database.Tx) error {
		if now, err := tx.Claim(id); err != nil || now == nil || now.Domain != domain {
			return err
		}
		return tx.DropClaim(id)
	})
}
