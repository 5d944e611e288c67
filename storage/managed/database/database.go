// SPDX-License-Identifier: Apache-2.0

// Package database remembers which managed volumes are attached to this host.
//
// The table volumes is VDSM's (lib/vdsm/storage/managedvolumedb.py, version 1),
// down to JSON as UTF-8 bytes in BLOBs, so that the file may be VDSM's own: it
// then keeps owner and mode, and VDSM goes on filtering our multipath devices
// from what it offers as LUNs. What VDSM does not know stands beside it, in
// tables of which it takes no notice:
//
//	diskhook_rows        in which boot a row was written
//	diskhook_claims      which domain has a volume to itself
//	diskhook_identities  what a volume was when it was attached first
//
// A trigger keeps the first two in step with the rows that VDSM deletes.
//
// A file of our own is made with mode 0600, since connection data holds
// passwords. There is one writer at a time, across processes: an Update is one
// transaction that has SQLite's write lock from its start, and waits for it.
// Nothing is ever half written; a transaction that was cut off is rolled back
// by whoever opens the file next. A file of a newer schema, or a damaged one, is
// a failure.Precondition, one that another program keeps for itself a
// failure.Temporary; other errors of the file are plain failures.
package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite" // also the driver "sqlite", without cgo
	sqlite3 "modernc.org/sqlite/lib"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
)

// patience is how long a writer waits for another one. A write takes
// milliseconds.
const patience = 10 * time.Second

// DB is an open database. It may be used from any goroutine.
type DB struct {
	sql  *sql.DB
	path string
}

// schema is VDSM's, then ours. It changes nothing where it already is.
var schema = [...]string{
	`CREATE TABLE IF NOT EXISTS volumes (
		vol_id TEXT PRIMARY KEY,
		path TEXT,
		connection_info TEXT,
		attachment TEXT,
		multipath_id TEXT,
		updated datetime
	)`,
	`CREATE UNIQUE INDEX IF NOT EXISTS multipath_id ON volumes (multipath_id)`,
	`CREATE TABLE IF NOT EXISTS versions (
		version INTEGER PRIMARY KEY,
		description TEXT,
		updated datetime
	)`,
	`INSERT INTO versions SELECT 1, 'Initial version', datetime('now') WHERE NOT EXISTS (SELECT 1 FROM versions)`,
	`CREATE TABLE IF NOT EXISTS diskhook_rows (
		vol_id TEXT PRIMARY KEY,
		boot TEXT NOT NULL
	)`,
	`CREATE TABLE IF NOT EXISTS diskhook_claims (
		vol_id TEXT PRIMARY KEY,
		domain TEXT NOT NULL,
		boot TEXT NOT NULL,
		attached INTEGER NOT NULL
	)`,
	`CREATE TABLE IF NOT EXISTS diskhook_identities (
		vol_id TEXT PRIMARY KEY,
		connection TEXT NOT NULL,
		wwn TEXT NOT NULL,
		size INTEGER NOT NULL
	)`,
	// A row that VDSM deletes, and perhaps writes anew, is none of ours any more.
	`CREATE TRIGGER IF NOT EXISTS diskhook_forget AFTER DELETE ON volumes BEGIN
		DELETE FROM diskhook_rows WHERE vol_id = OLD.vol_id;
		DELETE FROM diskhook_claims WHERE vol_id = OLD.vol_id;
	END`,
}

// Open opens the file, and makes it and what is missing in it. The caller closes it.
func Open(ctx context.Context, path string) (*DB, error) {
	if err := create(path); err != nil {
		return nil, fmt.Errorf("database of managed volumes: %w", err)
	}
	// _txlock: a transaction that reads before it writes must not find out in
	// the middle that somebody else writes.
	name := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"busy_timeout(" + strconv.FormatInt(patience.Milliseconds(), 10) + ")"},
	}.Encode()}
	pool, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	pool.SetMaxOpenConns(1)
	d := &DB{sql: pool, path: path}
	if err := d.prepare(ctx); err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return d, nil
}

// create makes the file before SQLite does, which would leave the mode to the
// umask. A file that is there keeps its mode and its owner.
func create(path string) error {
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return failure.Denied(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		if err := unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK|unix.W_OK, unix.AT_EACCESS); err != nil {
			return failure.Denied(&fs.PathError{Op: "open", Path: path, Err: err})
		}
		return nil
	case err != nil:
		return failure.Denied(failure.Full(err))
	}
	return errors.Join(f.Close(), atomicfile.Sync(filepath.Dir(path)))
}

// newest is the version of VDSM's schema that this package knows.
const newest = 1

func (d *DB) prepare(ctx context.Context) error {
	var there int
	const ours = `SELECT count(*) FROM sqlite_master WHERE type IN ('table', 'trigger') AND name IN
		('volumes', 'versions', 'diskhook_rows', 'diskhook_claims', 'diskhook_identities', 'diskhook_forget')`
	if err := d.sql.QueryRowContext(ctx, ours).Scan(&there); err != nil {
		return d.failed("read", err)
	}
	if there < 6 {
		if err := d.Update(ctx, func(tx *Tx) error {
			for _, statement := range schema {
				if err := tx.exec(statement); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	var version sql.NullInt64
	if err := d.sql.QueryRowContext(ctx, `SELECT max(version) FROM versions`).Scan(&version); err != nil {
		return d.failed("read", err)
	}
	if version.Int64 > newest {
		err := failure.New(failure.Precondition, "%s: its schema has version %d, and this program knows %d", d.path, version.Int64, newest)
		return failure.Hint(err, "set `database` in section [managed] of diskhook.toml to a file of its own")
	}
	return nil
}

// Close closes the file.
func (d *DB) Close() error { return d.sql.Close() }

// failed says what went wrong with the file, and what to do about it
// (https://www.sqlite.org/rescode.html).
func (d *DB) failed(what string, err error) error {
	err = failure.Full(fmt.Errorf("%s: %s: %w", d.path, what, err))
	said := new(sqlite.Error)
	if !errors.As(err, &said) {
		return err
	}
	const primary = 0xff // the rest is the extended code
	switch said.Code() & primary {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		err = failure.New(failure.Temporary, "%s: another program has been writing to it for %v", d.path, patience)
		return failure.Hint(err, "see which with `fuser %s`, and try again", d.path)
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		err = failure.New(failure.Precondition, "%s: it is damaged: %w", d.path, said)
		return failure.Hint(err, "restore it from a backup; or move it away, restart libvirtd, which gives running domains theirs again, and attach what else is attached: `diskhook volume attach` finds what is connected")
	case sqlite3.SQLITE_FULL:
		return failure.Wrap(failure.NoSpace, err)
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY:
		if os.Geteuid() != 0 {
			return failure.Hint(failure.Wrap(failure.Precondition, err), "run this as root")
		}
	}
	return err
}

// Tx is what one caller of Update sees and does, alone.
type Tx struct {
	ctx context.Context
	tx  *sql.Tx
	db  *DB
}

// Update calls change while nobody else writes, and makes durable what it did
// when it returns nil. Otherwise nothing happened.
func (d *DB) Update(ctx context.Context, change func(*Tx) error) error {
	tx, err := d.sql.BeginTx(ctx, nil)
	if err != nil {
		return d.failed("write", err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	if err := change(&Tx{ctx, tx, d}); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return d.failed("write", err)
	}
	return nil
}

func (t *Tx) exec(statement string, args ...any) error {
	if _, err := t.tx.ExecContext(t.ctx, statement, args...); err != nil {
		return t.db.failed("write", err)
	}
	return nil
}
