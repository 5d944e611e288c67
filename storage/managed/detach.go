// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"diskhook/storage/failpoint"
	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Detach takes a volume away, whoever attached it. A volume that is not
// attached is no error. One that a domain of this boot has claimed is a
// failure.Conflict unless domain is that domain, one that somebody has open is
// a failure.Conflict in any case. It goes on where the device has vanished,
// and a call that failed or crashed is finished by the next.
func (s *Service) Detach(ctx context.Context, id, domain string) error {
	if err := CheckID(id); err != nil {
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
		if err := s.unclaimed(ctx, id, boot, domain); err != nil {
			return err
		}
		if err := s.disconnect(ctx, *row); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("detach.disconnected"); err != nil {
		return err
	}
	if err := s.unlink(ctx, id); err != nil {
		return err
	}
	if err := failpoint.Hit("detach.unlinked"); err != nil {
		return err
	}
	return s.update(ctx, func(tx *database.Tx) error { return tx.Forget(id) })
}

// unclaimed refuses a volume that another domain of this boot has.
func (s *Service) unclaimed(ctx context.Context, id, boot, domain string) error {
	claims, err := s.claims(ctx)
	if err != nil {
		return err
	}
	if c, ok := claims[id]; ok && c.Boot == boot && c.Domain != domain {
		return claimed(c)
	}
	return nil
}

// disconnect has the connector take away what the row tells of. The caller has
// the volume's lock. What was of an earlier boot may be another volume's by now.
func (s *Service) disconnect(ctx context.Context, row database.Volume) error {
	c, err := s.connector(row)
	if err != nil {
		return err
	}
	unshare, err := s.lockShared(ctx, c)
	if err != nil {
		return err
	}
	defer unshare()
	others, err := s.staying(ctx, row.ID)
	if err != nil || slices.ContainsFunc(others, func(other connector.Connector) bool { return overlap(c, other) }) {
		return err
	}
	return c.Detach(ctx, outcome(row), others)
}

// overlap says that two connectors are for one device.
func overlap(a, b connector.Connector) bool {
	return slices.ContainsFunc(a.Takes(), func(what string) bool { return slices.Contains(b.Takes(), what) })
}

// connector is that of a row.
func (s *Service) connector(row database.Volume) (connector.Connector, error) {
	info, err := connector.ParseInfo(row.Connection)
	if err != nil {
		return nil, err
	}
	c, err := s.Host.Open(row.ID, info)
	if err != nil && foreign(row) {
		err = failure.Hint(err, "VDSM has attached it: run `vdsm-client ManagedVolume detach_volume vol_id=%s`", row.ID)
	}
	return c, err
}

// outcome is what the row tells of an attachment.
func outcome(row database.Volume) connector.Attachment {
	return connector.Attachment{Path: row.Path, MultipathID: row.MultipathID, JSON: row.Attachment}
}

// rows are all volumes that the database has, and the boot they are seen in.
func (s *Service) rows(ctx context.Context) (rows []database.Volume, boot string, err error) {
	if boot, err = s.Boot(); err != nil {
		return nil, "", err
	}
	err = s.reading(ctx, func(db *database.DB) (err error) {
		rows, err = db.Volumes(ctx)
		return err
	})
	return rows, boot, err
}

// staying are the volumes of this boot but for one.
func (s *Service) staying(ctx context.Context, but string) ([]connector.Connector, error) {
	rows, boot, err := s.rows(ctx)
	if err != nil {
		return nil, err
	}
	var others []connector.Connector
	for _, other := range s.open(rows, but, boot) {
		others = append(others, other)
	}
	return others, nil
}

func (s *Service) claims(ctx context.Context) (all map[string]database.Claim, err error) {
	err = s.reading(ctx, func(db *database.DB) (err error) {
		all, err = db.Claims(ctx)
		return err
	})
	return all, err
}

// claimed lists the volumes that a domain has, by id.
func (s *Service) claimed(ctx context.Context, domain string) ([]string, error) {
	claims, err := s.claims(ctx)
	if err != nil {
		return nil, err
	}
	var all []string
	for id, c := range claims {
		if c.Domain == domain {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all, nil
}

// ReleaseRest releases every volume that the domain has. All are tried.
func (s *Service) ReleaseRest(ctx context.Context, domain string) error {
	claimed, err := s.claimed(ctx, domain)
	if err != nil {
		return err
	}
	var failed []error
	for _, id := range claimed {
		failed = append(failed, s.Release(ctx, id, domain))
	}
	return errors.Join(failed...)
}

// Release ends the domain's claim on a volume, and detaches it if it was
// attached for that claim. Without a claim of the domain nothing happens.
func (s *Service) Release(ctx context.Context, id, domain string) error {
	if err := CheckID(id); err != nil {
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
	return s.dropClaim(ctx, id, domain)
}

// dropClaim ends the domain's claim, and leaves the volume attached.
func (s *Service) dropClaim(ctx context.Context, id, domain string) error {
	return s.update(ctx, func(tx *database.Tx) error {
		if now, err := tx.Claim(id); err != nil || now == nil || now.Domain != domain {
			return err
		}
		return tx.DropClaim(id)
	})
}
