// SPDX-License-Identifier: Apache-2.0

package privileged

import (
	"context"
	"fmt"
	"io"
	"time"

	"diskhook/storage/managed/connector"
)

// lookTime is how long the programs that tell of this host may take. Whoever
// asks waits longer, so that it hears what was slow.
const lookTime = 5 * time.Second

// connector tells of the host what root alone can read, the name of its iSCSI
// initiator before all (mode 0600 in open-iscsi). The storage side gets to know
// all of it.
func (s *Server) connector(ctx context.Context, in io.Reader, _ io.Writer) (any, error) {
	if err := decode(in, &struct{}{}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	properties, err := s.ConnectorInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("connector info: %w", err)
	}
	return properties, nil
}

// ConnectorInfo is managed.Service.ConnectorInfo. It takes no longer than the
// context says, by a moment.
func (c *Client) ConnectorInfo(ctx context.Context) (connector.Properties, error) {
	var p connector.Properties
	return p, c.call(ctx, "volume", "connector", struct{}{}, &p, quickly)
}
