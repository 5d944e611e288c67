// SPDX-License-Identifier: Apache-2.0

package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"diskhook/storage/failure"
)

// ErrMultipathTaken says that another volume has the multipath id: two rows
// would stand for one device. It is a failure.Conflict.
var ErrMultipathTaken = failure.Wrap(failure.Conflict, errors.New("another managed volume has this multipath id"))

// Volume is a row of VDSM's table volumes, and when it was written. Path,
// Attachment and MultipathID are empty until the volume is attached.
type Volume struct {
	ID          string
	Path        string
	Connection  []byte // connection_info, JSON
	Attachment  []byte // JSON
	MultipathID string
	Updated     string // UTC, YYYY-MM-DD HH:MM:SS; empty until attached
	// Boot is the boot in which it was written; empty in a row of VDSM's.
	Boot string
}

const selectVolumes = `SELECT v.vol_id, v.path, v.connection_info, v.attachment, v.multipath_id, v.updated, r.boot
	FROM volumes v LEFT JOIN diskhook_rows r ON r.vol_id = v.vol_id`

// Volumes returns the rows with these ids, or all, sorted by id. An id that is
// not there is left out.
func (d *DB) Volumes(ctx context.Context, ids ...string) ([]Volume, error) {
	if len(ids) == 0 {
		rows, err := d.sql.QueryContext(ctx, selectVolumes+` ORDER BY v.vol_id`)
		return d.volumes(rows, err)
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	in := strings.TrimSuffix(strings.Repeat("?,", len(ids)), ",")
	rows, err := d.sql.QueryContext(ctx, selectVolumes+` WHERE v.vol_id IN (`+in+`) ORDER BY v.vol_id`, args...)
	return d.volumes(rows, err)
}

// Volumes is DB.Volumes within the transaction.
func (t *Tx) Volumes() ([]Volume, error) {
	rows, err := t.tx.QueryContext(t.ctx, selectVolumes+` ORDER BY v.vol_id`)
	return t.db.volumes(rows, err)
}

func (d *DB) volumes(rows *sql.Rows, err error) ([]Volume, error) {
	if err != nil {
		return nil, d.failed("read", err)
	}
	defer rows.Close()
	var all []Volume
	for rows.Next() {
		var v Volume
		var path, multipath, updated, boot sql.NullString
		if err := rows.Scan(&v.ID, &path, &v.Connection, &v.Attachment, &multipath, &updated, &boot); err != nil {
			return nil, d.failed("read", err)
		}
		v.Path, v.MultipathID, v.Updated, v.Boot = path.String, multipath.String, updated.String, boot.String
		all = append(all, v)
	}
	if err := rows.Err(); err != nil {
		return nil, d.failed("read", err)
	}
	return all, nil
}

// Record writes the intent to attach: a row with nothing but the connection.
// It replaces what was there.
func (t *Tx) Record(id string, connection []byte, boot string) error {
	return errors.Join(
		t.exec(`INSERT OR REPLACE INTO volumes (vol_id, connection_info) VALUES (?, ?)`, id, connection),
		t.exec(`INSERT OR REPLACE INTO diskhook_rows (vol_id, boot) VALUES (?, ?)`, id, boot))
}

// Attached writes the outcome into the row: path, attachment and multipath id.
func (t *Tx) Attached(v Volume) error {
	result, err := t.tx.ExecContext(t.ctx,
		`UPDATE volumes SET path = ?, attachment = ?, multipath_id = ?, updated = datetime('now') WHERE vol_id = ?`,
		v.Path, v.Attachment, sql.NullString{String: v.MultipathID, Valid: v.MultipathID != ""}, v.ID)
	var refused *sqlite.Error
	if errors.As(err, &refused) && refused.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return fmt.Errorf("volume %s: multipath id %s: %w", v.ID, v.MultipathID, ErrMultipathTaken)
	}
	if err != nil {
		return t.db.failed("write", err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return failure.New(failure.Conflict, "volume %s: its row has gone from the database", v.ID)
	}
	return nil
}

// GiveUpMultipathID takes the id from a row of another boot, whose map is no more.
func (t *Tx) GiveUpMultipathID(id, boot string) error {
	return t.exec(`UPDATE volumes SET multipath_id = NULL WHERE multipath_id = ?
		AND vol_id IN (SELECT vol_id FROM diskhook_rows WHERE boot != ?)`, id, boot)
}

// Forget removes the row, and whatever claim there is. One that is not there is
// no error.
func (t *Tx) Forget(id string) error {
	return errors.Join(
		t.exec(`DELETE FROM volumes WHERE vol_id = ?`, id),
		t.exec(`DELETE FROM diskhook_rows WHERE vol_id = ?`, id),
		t.exec(`DELETE FROM diskhook_claims WHERE vol_id = ?`, id))
}
