// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"context"
	"fmt"

	"diskhook/storage/failure"
	"diskhook/storage/managed/connector"
)

// Which returns the volume that a device of this host is, or a partition, a path
// or a multipath map of: of those that are defined or in the database, attached
// or being attached. That of an adapter is known once it is attached. A device
// that is none is a failure.NotFound.
//
// udev asks this of each device with something on it that somebody would act
// upon (contrib/udev), so it takes no lock: whoever attaches waits for udev.
func (s *Service) Which(ctx context.Context, device string) (string, error) {
	beneath, err := s.Host.Beneath(device)
	if err != nil {
		return "", fmt.Errorf("device %s: %w", failure.OneLine(device), err)
	}
	seen := *s
	seen.Host = s.Host.Snapshot()
	rows, boot, err := s.rows(ctx)
	if err != nil {
		// A database that cannot be read, as before /var is mounted, leaves the definitions.
		s.Log.WarnContext(ctx, "only definitions are looked at", "err", err)
	}
	for _, row := range rows {
		was := outcome(row)
		if stale(row, boot) {
			was = connector.Attachment{}
		}
		c, _ := seen.connector(row) // of a type that only VDSM knows
		if beneath.Has(ctx, seen.Host, was, c) {
			return row.ID, nil
		}
	}
	definitions, _ := s.Definitions() // one that is damaged is none
	for _, d := range definitions {
		info, err := s.definition(d.ID)
		if err != nil {
			continue
		}
		if c, err := seen.Host.Open(d.ID, info); err == nil && beneath.Has(ctx, seen.Host, connector.Attachment{}, c) {
			return d.ID, nil
		}
	}
	return "", failure.New(failure.NotFound, "device %s: no managed volume", failure.OneLine(device))
}
