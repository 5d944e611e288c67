// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
)

// local is a device that is on this host anyway, such as LINSTOR's:
//
//	{"driver_volume_type": "local", "data": {"device_path": "/dev/drbd/by-res/…/0"}}
type local struct {
	host *Host
	path string
}

func newLocal(h *Host, info Info) (Connector, error) {
	path, err := info.text("device_path")
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(path, "/dev/") || filepath.Clean(path) != path || strings.ContainsAny(path, "\n\t") {
		return nil, invalid("data.device_path: %q is not a clean path below /dev", path)
	}
	return &local{h, path}, nil
}

func (l *local) Takes() []string  { return []string{"local:" + l.path} }
func (l *local) Shares() []string { return nil }

// Attach finds the device. It has to be there: nobody here can bring it.
func (l *local) Attach(context.Context) (Attachment, error) {
	path := l.host.at(l.path)
	name, err := l.host.device(path)
	if err != nil {
		return Attachment{}, fmt.Errorf("device of the volume: %w", err)
	}
	body, err := json.Marshal(map[string]string{"type": "local", "path": path})
	return Attachment{Path: path, JSON: body, Identity: l.host.identity(name)}, err
}

// Detach has nothing to take away. But whoever has the device open has the
// volume, too.
func (l *local) Detach(ctx context.Context, _ Attachment, _ []Connector) error {
	return l.host.unusedPath(ctx, l.host.at(l.path))
}
