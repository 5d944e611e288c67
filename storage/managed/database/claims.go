// SPDX-License-Identifier: Apache-2.0

package database

import (
	"context"
	"database/sql"
	"errors"
)

// Claim says that a domain has a volume to itself, on this host and in one boot.
type Claim struct {
	Volume string
	Domain string
	Boot   string
	// Attached says that the volume was attached for the domain, and goes
	// when the domain lets go of it.
	Attached bool
}

const selectClaims = `SELECT vol_id, domain, boot, attached FROM diskhook_claims`

// Claims returns all claims by volume, those of earlier boots among them.
func (d *DB) Claims(ctx context.Context) (map[string]Claim, error) {
	rows, err := d.sql.QueryContext(ctx, selectClaims)
	if err != nil {
		return nil, d.failed("read", err)
	}
	defer rows.Close()
	all := map[string]Claim{}
	for rows.Next() {
		var c Claim
		if err := rows.Scan(&c.Volume, &c.Domain, &c.Boot, &c.Attached); err != nil {
			return nil, d.failed("read", err)
		}
		all[c.Volume] = c
	}
	if err := rows.Err(); err != nil {
		return nil, d.failed("read", err)
	}
	return all, nil
}

// Claim returns the claim on a volume, or nil.
func (t *Tx) Claim(volume string) (*Claim, error) {
	var c Claim
	err := t.tx.QueryRowContext(t.ctx, selectClaims+` WHERE vol_id = ?`, volume).Scan(&c.Volume, &c.Domain, &c.Boot, &c.Attached)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, t.db.failed("read", err)
	}
	return &c, nil
}

// SetClaim writes the claim over any other.
func (t *Tx) SetClaim(c Claim) error {
	return t.exec(`INSERT OR REPLACE INTO diskhook_claims (vol_id, domain, boot, attached) VALUES (?, ?, ?, ?)`,
		c.Volume, c.Domain, c.Boot, c.Attached)
}

// DropClaim removes the claim on a volume, if there is one.
func (t *Tx) DropClaim(volume string) error {
	return t.exec(`DELETE FROM diskhook_claims WHERE vol_id = ?`, volume)
}

// Identity is what a volume was when it was attached over one connection first.
type Identity struct {
	Volume     string
	Connection string // digest of the connection data
	WWN        string // empty where the storage has none
	Size       int64  // bytes
}

// Identity returns what is known of a volume, or nil.
func (d *DB) Identity(ctx context.Context, volume string) (*Identity, error) {
	var i Identity
	err := d.sql.QueryRowContext(ctx, `SELECT vol_id, connection, wwn, size FROM diskhook_identities WHERE vol_id = ?`, volume).
		Scan(&i.Volume, &i.Connection, &i.WWN, &i.Size)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, d.failed("read", err)
	}
	return &i, nil
}

// SetIdentity writes what a volume is over what it was.
func (t *Tx) SetIdentity(i Identity) error {
	return t.exec(`INSERT OR REPLACE INTO diskhook_identities (vol_id, connection, wwn, size) VALUES (?, ?, ?, ?)`,
		i.Volume, i.Connection, i.WWN, i.Size)
}

// ForgetIdentity lets the next attach decide what the volume is.
func (t *Tx) ForgetIdentity(volume string) error {
	return t.exec(`DELETE FROM diskhook_identities WHERE vol_id = ?`, volume)
}
