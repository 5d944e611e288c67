// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
)

// The part of VDSM's managedvolume-helper (lib/vdsm/storage/managedvolume.py):
// VDSM itself keeps rows, links and rules, and has the helper connect and
// disconnect. So the database is never opened here, and there is no definition.

// Row is what VDSM knows of a volume that it has detached.
type Row struct {
	Connection  json.RawMessage `json:"connection_info"`
	Path        *string         `json:"path"`
	Attachment  json.RawMessage `json:"attachment"`
	MultipathID *string         `json:"multipath_id"`
}

// ParseRow reads what VDSM sends: a row, an object that has the connection_info
// only, or, from releases up to 4.50.7 for attach, the connection_info itself.
func ParseRow(text []byte) (Row, error) {
	var row struct {
		Row
		Type *string `json:"driver_volume_type"`
	}
	if err := json.Unmarshal(text, &row); err != nil {
		return Row{}, failure.New(failure.Usage, "%w: standard input is not a JSON object with a connection_info", connector.ErrInvalid)
	}
	if row.Connection == nil && row.Type != nil {
		row.Connection = text
	}
	return row.Row, nil
}

// Connect connects a volume for VDSM and returns its attachment. After an error
// nothing of it is connected, unless the error says so.
func (s *Service) Connect(ctx context.Context, row Row) (json.RawMessage, error) {
	c, unlock, err := s.forVDSM(ctx, row)
	if err != nil {
		return nil, err
	}
	defer unlock()
	attachment, err := c.Attach(ctx)
	if err == nil {
		s.Host.Settle(ctx)
		return attachment.JSON, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if left := c.Detach(ctx, attachment, nil); left != nil {
		return nil, fmt.Errorf("%w; and what was connected stays: %w", err, left)
	}
	return nil, err
}

// Disconnect takes a volume of VDSM's away. It may have gone already.
func (s *Service) Disconnect(ctx context.Context, row Row) error {
	c, unlock, err := s.forVDSM(ctx, row)
	if err != nil {
		return err
	}
	defer unlock()
	was := connector.Attachment{JSON: row.Attachment}
	if row.Path != nil {
		was.Path = *row.Path
	}
	if row.MultipathID != nil {
		was.MultipathID = *row.MultipathID
	}
	return c.Detach(ctx, was, nil)
}

// forVDSM checks the connection and keeps others away from what it uses.
func (s *Service) forVDSM(ctx context.Context, row Row) (connector.Connector, func(), error) {
	info, err := connector.ParseInfo(row.Connection)
	if err != nil {
		return nil, nil, err
	}
	info.Adapter = "" // that is how VDSM came here
	if keys := info.SecretFiles(); len(keys) > 0 {
		err := failure.New(failure.Usage, "%w: %s names a file of this host, which only a definition may", connector.ErrInvalid, keys[0])
		return nil, nil, failure.Hint(err, "send the secret itself")
	}
	if helped := []string{"iscsi", "local", "rbd"}; !slices.Contains(helped, info.Type) {
		// VDSM refuses others once they are connected; and of those that share a
		// connection nobody here would know which volumes still need it.
		err := failure.New(failure.Precondition, "driver_volume_type %q: %w by VDSM's helper", info.Type, connector.ErrUnsupported)
		return nil, nil, failure.Hint(err, "have the storage provide it as one of %v, or name an adapter that knows it", helped)
	}
	host := *s.Host
	host.NeedMultipath = true
	id := "vdsm-" + info.Digest()[:32]
	c, err := host.Open(id, info)
	if err == nil {
		err = host.Ready(info)
	}
	if err != nil {
		return nil, nil, err
	}
	unlock, err := s.lockVolume(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	unshare, err := s.lockShared(ctx, c)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return c, func() { unshare(); unlock() }, nil
}
