// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"diskhook/storage/failure"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
)

// ErrNoMember says that a host's membership has ended.
var ErrNoMember = errors.New("it is no member of the cluster any more")

// Group is the volume group of a cluster; dev is where device nodes are, as
// host.Layout says.
func (d Definition) Group(l *lvm.LVM, dev string) group.Group {
	if d.Dir != "" {
		return group.Files{Dir: d.Dir, Capacity: d.Capacity}
	}
	return group.LVM(l, d.VG, dev, d.UUID)
}

// Map reads a cluster's map, as any host may.
func Map(ctx context.Context, g group.Group, id uuid.UUID) (m layout.Map, stamp layout.Stamp, err error) {
	err = group.With(ctx, g, layout.MapName, false, func(dev group.Volume) error {
		m, stamp, err = layout.ReadMap(dev, id)
		return err
	})
	return m, stamp, group.Lost(ctx, g, err)
}

// Volume finds a volume by its name or UUID. One that is not there is a
// failure.NotFound.
func Volume(m layout.Map, word string) (layout.VolumeRecord, error) {
	for _, v := range m.Volumes {
		if v.Name == word || v.UUID.String() == word {
			return v, nil
		}
	}
	err := failure.New(failure.NotFound, "volume %q: there is no such volume in the cluster", word)
	return layout.VolumeRecord{}, failure.Hint(err, "see `diskhook thin status`")
}

// Host finds a host by its name or UUID: its membership that goes on, else the last
// one that ended. One that was never there is a failure.NotFound.
func Host(m layout.Map, word string) (layout.HostRecord, error) {
	var found *layout.HostRecord
	for i, h := range m.Hosts {
		if h.Name != word && h.UUID.String() != word {
			continue
		}
		if found == nil || found.State == layout.Recovered || h.State != layout.Recovered {
			found = &m.Hosts[i]
		}
	}
	if found != nil {
		return *found, nil
	}
	err := failure.New(failure.NotFound, "host %q: it is not in the cluster", word)
	return layout.HostRecord{}, failure.Hint(err, "see `diskhook thin status`; `diskhook thin init-host %s` on the master lets it in", word)
}

// Member finds a host that is a member. One that was fenced or recovered is a
// failure.Precondition: it may not go on before it has joined again.
func Member(m layout.Map, word string) (layout.HostRecord, error) {
	h, err := Host(m, word)
	if err == nil && h.State != layout.Member {
		err = failure.New(failure.Precondition, "host %s: %w (%s)", h.Name, ErrNoMember, h.Evidence)
		err = failure.Hint(err, "stop its guests and run `diskhook thin stop` on it, or reboot it; then run `diskhook thin init-host --rejoin %s` on the master", h.Name)
	}
	return h, err
}

// NameOf is what a host is called, for people.
func NameOf(m layout.Map, number uint32) string {
	for _, h := range m.Hosts {
		if h.Number == number {
			return h.Name
		}
	}
	return ""
}
