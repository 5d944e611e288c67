// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/request"
)

// master is the cluster's master, for the verbs that change the map here.
func (t *thinCluster) master() *master.Master {
	return &master.Master{
		Group: t.group, Cluster: t.UUID, Name: t.Name, Layout: t.layout, Run: command.System{Log: t.log}, Log: t.log,
	}
}

// masterDeadline is how long a verb waits for the master's answer.
const masterDeadline = time.Minute

// deviceClosing is what the device of a volume is given to be closed by those who
// only look at it. A host that is short of time has commands of LVM take seconds.
const deviceClosing = 10 * time.Second

// way is the way to the master: without the disk where this host is the master, which
// it can become or cease to be while a monitor runs.
type way struct {
	here *master.Master
	request.Slots
}

// Ask is request.Channel's.
func (w way) Ask(ctx context.Context, sequence uint64, r request.Request) (request.Reply, error) {
	_, is, err := w.here.Reigns(ctx)
	switch {
	case err != nil:
		return request.Reply{}, err
	case is:
		return w.here.Channel(w.Host).Ask(ctx, sequence, r)
	}
	return w.Slots.Ask(ctx, sequence, r)
}

// member is this host in the cluster, which it has to have joined.
func (t *thinCluster) member(ctx context.Context) (*member.Member, error) {
	name, err := t.ThisHost()
	if err != nil {
		return nil, err
	}
	m, err := t.readMap(ctx)
	if err != nil {
		return nil, err
	}
	self, err := cluster.Member(m, name)
	if err != nil {
		return nil, err
	}
	channel := func(own layout.Device, epoch uint64) request.Channel {
		return way{t.master(), request.Slots{Device: own, Cluster: t.UUID, Host: self.UUID, Epoch: epoch}}
	}
	here, err := t.local()
	if err != nil {
		return nil, err
	}
	here.Host, here.Group, here.Channel = self.UUID, t.group, channel
	here.Deadline, here.LowWater = masterDeadline, cluster.Quantum(m)
	return here, nil
}

// local is what of this host's side the disk does not have to be asked for: enough to
// stop its pool, whether it is a member still or not.
func (t *thinCluster) local() (*member.Member, error) {
	claims, err := claim.Open(t.layout, t.Name)
	labels, noName := claim.OpenLabels(t.layout, t.Name)
	return &member.Member{
		Name: t.Name, Cluster: t.UUID, Mapper: t.mapper, Windows: t.windows, Locks: t.layout.Locks(),
		Links: thinLinks(t.layout), Dev: t.layout.Dev(), Claims: claims, Labels: labels, Closing: deviceClosing, Log: t.log,
	}, errors.Join(err, noName)
}

// thinLinks is the directory in which each cluster has one with links to its volumes.
func thinLinks(l host.Layout) string { return filepath.Join(l.Run(), "thin") }
