// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"diskhook/storage/command"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/database"
)

// Info describes a volume that is in the database, with VDSM's names. Exists
// is there when a path is, and says whether that leads anywhere now. Secrets
// in the connection are masked. Storage that does not answer does not exist.
type Info struct {
	ID         string          `json:"vol_id"`
	Connection json.RawMessage `json:"connection_info"`
	Path       string          `json:"path,omitempty"`
	Attachment json.RawMessage `json:"attachment,omitempty"`
	Exists     *bool           `json:"exists,omitempty"`
}

// Describe is VolumesInfo for an operator, who also wants to see what is
// defined and not attached.
func (s *Service) Describe(ctx context.Context, ids ...string) ([]Info, error) {
	all, err := s.VolumesInfo(ctx, ids...)
	if err != nil {
		return nil, err
	}
	definitions, damaged := s.Definitions()
	for _, d := range definitions {
		known := slices.ContainsFunc(all, func(i Info) bool { return i.ID == d.ID })
		if !known && (len(ids) == 0 || slices.Contains(ids, d.ID)) {
			all = append(all, Info{ID: d.ID, Connection: d.Connection})
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return all, damaged
}

// VolumesInfo describes these volumes, or all, by id. One that is not in the
// database is left out.
func (s *Service) VolumesInfo(ctx context.Context, ids ...string) ([]Info, error) {
	var rows []database.Volume
	err := s.reading(ctx, func(db *database.DB) (err error) {
		rows, err = db.Volumes(ctx, ids...)
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Info, len(rows)) // [] in JSON, never null
	err = atOnce(len(rows), func(i int) error {
		row := rows[i]
		all[i] = Info{ID: row.ID, Connection: connector.Redact(row.Connection), Path: row.Path}
		if row.Path == "" {
			return nil
		}
		all[i].Attachment = connector.Redact(row.Attachment)
		exists, err := here(ctx, row.Path)
		if err != nil && (!errors.Is(err, command.ErrNoAnswer) || ctx.Err() != nil) {
			return err
		}
		all[i].Exists = &exists
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
