// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Volume is what this host knows of a volume that is defined here, in the
// database, or both.
type Volume struct {
	ID      string `json:"id"`
	Type    string `json:"type"` // driver_volume_type; "" where it cannot be read
	Defined bool   `json:"defined"`
	// Path is where the device was when it was attached, Link what domains name.
	Path string `json:"path,omitempty"`
	Link string `json:"link"`
	// Attached says that all is as Attach left it, in this boot.
	Attached bool `json:"attached"`
	// Domain is the one that has it, in this boot.
	Domain  string  `json:"domain,omitempty"`
	Problem Problem `json:"problem,omitempty"`
}

// List returns all volumes by id. Definitions that cannot be read are in the
// error, beside the others.
func (s *Service) List(ctx context.Context) ([]Volume, error) {
	boot, err := s.Boot()
	if err != nil {
		return nil, err
	}
	definitions, damaged := s.Definitions()
	if definitions == nil && damaged != nil {
		return nil, damaged
	}
	all := map[string]Volume{}
	for _, d := range definitions {
		info, err := connector.ParseInfo(d.Connection)
		if err == nil {
			all[d.ID] = Volume{ID: d.ID, Type: info.Type, Defined: true, Link: s.Link(d.ID)}
		}
	}
	var rows []database.Volume
	if err := s.reading(ctx, func(db *database.DB) (err error) {
		rows, err = db.Volumes(ctx)
		return err
	}); err != nil {
		return nil, err
	}
	claims, err := s.claims(ctx)
	if err != nil {
		return nil, err
	}
	problems := make([]Problem, len(rows))
	if err := atOnce(len(rows), func(i int) (err error) {
		c, claimed := claims[rows[i].ID]
		problems[i], _, err = s.judge(ctx, rows[i], boot, claimed && c.Boot == boot)
		return err
	}); err != nil {
		return nil, err
	}
	for i, row := range rows {
		v := all[row.ID]
		v.ID, v.Path, v.Link = row.ID, row.Path, s.Link(row.ID)
		if info, err := connector.ParseInfo(row.Connection); err == nil {
			v.Type = info.Type
		}
		if c := claims[row.ID]; c.Boot == boot {
			v.Domain = c.Domain
		}
		v.Problem = problems[i]
		v.Attached = v.Problem == ""
		all[row.ID] = v
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Volume) int { return cmp.Compare(a.ID, b.ID) }), damaged
}

// Devices lists the devices of this host that are no managed volume: what an
// administrator may use for something else.
func (s *Service) Devices(ctx context.Context) ([]connector.Device, error) {
	rows, boot, err := s.rows(ctx)
	if err != nil {
		return nil, err
	}
	var mine []connector.Attachment
	for _, row := range rows {
		if stale(row, boot) {
			row.Path = "" // another device may have that name now
		}
		mine = append(mine, outcome(row))
	}
	return s.Host.Devices(mine), nil
}
