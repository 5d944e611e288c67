// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
)

// connectorInfo is the key under which Engine looks in a host's capabilities for
// what its storage has to know. VDSM adds it where os-brick is installed and
// could tell (managedvolume.connector_info); on a host without, Engine refuses
// to run VMs with managed volumes.
const connectorInfo = "connector_info"

// capsTime is how long capabilities wait for us: VDSM waits without limit, and
// Engine takes a host that does not answer for a broken one.
const capsTime = 8 * time.Second

// afterGetCaps adds connector_info to the capabilities. A host that cannot tell
// it is as good for everything else, so whatever is wrong leaves them as they
// are and is a line in the log.
func afterGetCaps(ctx context.Context, h *bindings.Host, c Call, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, capsTime)
	defer cancel()
	began := time.Now()
	if err := addConnectorInfo(ctx, h, c.env("_hook_json")); err != nil {
		log.Warn("capabilities are left as VDSM has them", "err", err, "hint", failure.HintOf(err))
		return
	}
	log.Info("hook", "took", time.Since(began).Round(time.Millisecond))
}

func addConnectorInfo(ctx context.Context, h *bindings.Host, path string) error {
	f, err := open(path)
	if err != nil {
		return fmt.Errorf("_hook_json: %w", err)
	}
	caps, err := parseDict(f.content)
	if err != nil {
		return fmt.Errorf("_hook_json: %w", err)
	}
	if _, there := caps.values[connectorInfo]; there {
		return nil // VDSM's, or that of a hook before this one
	}
	properties, err := h.ConnectorInfo(ctx)
	if err != nil {
		return err
	}
	text, err := json.Marshal(properties)
	if err != nil {
		return err
	}
	return f.replace(caps.withValue(connectorInfo, text))
}
