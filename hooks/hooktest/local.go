// SPDX-License-Identifier: Apache-2.0

package hooktest

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// Local stands in for local copies: every copy is ready, unless Err says
// otherwise. It records each call as one line.
type Local struct {
	Layout host.Layout // for the paths of placements
	Config host.Config
	Err    map[string]error // by verb: fulfil, release, …
	Asked  []localdisk.Disk // of the last observe or fulfil

	mu    sync.Mutex
	Calls []string
}

func (l *Local) called(verb, format string, args ...any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Calls = append(l.Calls, strings.TrimSpace(verb+" "+fmt.Sprintf(format, args...)))
	return l.Err[verb]
}

func names(disks []localdisk.Disk) string {
	var all []string
	for _, d := range disks {
		all = append(all, d.Target+"="+d.Backend)
	}
	return strings.Join(all, " ")
}

// Observe finds every copy ready and used.
func (l *Local) Observe(_ context.Context, disks []localdisk.Disk) ([]localdisk.Observed, error) {
	l.Asked = disks
	err := l.called("observe", "%s", names(disks))
	var observed []localdisk.Observed
	for _, d := range disks {
		observed = append(observed, localdisk.Observed{
			Disk: d, Machine: Machine,
			Copy:    localdisk.Copy{State: localdisk.Ready, UUID: "u", Name: d.CopyName(), Size: 1},
			Receipt: &localdisk.Receipt{Copy: "u", Backend: d.Backend, Volume: d.Volume, Machine: Machine, Used: true, Size: 1},
		})
	}
	return observed, err
}

// Commands names the disk that a command would be for.
func (l *Local) Commands(_ context.Context, o localdisk.Observed, d localdisk.Decision) []string {
	return []string{string(d.Action) + " " + o.Disk.CopyName()}
}

// Fulfil places every disk where the real one would.
func (l *Local) Fulfil(_ context.Context, disks []localdisk.Disk, w localdisk.Waiting) ([]localdisk.Placement, error) {
	l.Asked = disks
	if err := l.called("fulfil", "%s deadline=%v", names(disks), w.Deadline); err != nil {
		return nil, err
	}
	var placements []localdisk.Placement
	for _, d := range disks {
		path := localdisk.StablePath(l.Layout, d.Domain, d.Target)
		switch {
		case d.OVirt() && d.Backend == "dir":
			path = filepath.Join(l.Config.Local.Dir, d.Volume+".raw")
		case d.OVirt():
			path = filepath.Join("/dev", l.Config.Local.VG, d.Volume)
		}
		placements = append(placements, localdisk.Placement{Target: d.Target, Path: path, Node: path, Block: d.Backend != "dir"})
	}
	return placements, nil
}

// Release implements bindings.Local.
func (l *Local) Release(_ context.Context, domain string, disks []localdisk.Disk, reason string) error {
	return l.called("release", "%s %s reason=%q", domain, names(disks), reason)
}

// Abandon implements bindings.Local.
func (l *Local) Abandon(_ context.Context, domain string) error {
	return l.called("abandon", "%s", domain)
}

// ReleaseRest implements bindings.Local.
func (l *Local) ReleaseRest(_ context.Context, domain string) error {
	return l.called("release-rest", "%s", domain)
}

// SetOwner implements bindings.Local.
func (l *Local) SetOwner(_ context.Context, p localdisk.Placement, uid, gid int) error {
	return l.called("owner", "%s %d:%d", filepath.Base(p.Node), uid, gid)
}

// MarkSaved implements bindings.Local.
func (l *Local) MarkSaved(_ context.Context, domain string) error {
	return l.called("mark-saved", "%s", domain)
}

// ClearSaved implements bindings.Local.
func (l *Local) ClearSaved(_ context.Context, domain string) error {
	return l.called("clear-saved", "%s", domain)
}
