// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/stream"
)

func thinCommand(p *program) *cli.Command {
	var verbs []*cli.Command
	for _, some := range [][]*cli.Command{
		thinClusterVerbs(p), thinHostVerbs(p), thinVolumeVerbs(p), thinStatusVerbs(p), thinExportVerbs(p),
		thinMasterVerbs(p), thinMembershipVerbs(p),
	} {
		verbs = append(verbs, some...)
	}
	return &cli.Command{Name: "thin", Usage: "thin volumes on a disk that several hosts share (thin clusters)", Subcommands: verbs}
}

func clusterFlag() cli.Flag {
	return &cli.StringFlag{Name: "cluster", Usage: "the cluster `NAME` (default: [thin] cluster, else the only one that is defined)"}
}

// thinVerb is a verb on one cluster.
func (p *program) thinVerb(name, usage, args string, act func(*program, *cli.Context) error, flags ...cli.Flag) *cli.Command {
	return p.verb(name, usage, args, act, append(flags, clusterFlag())...)
}

// thinCluster is a cluster as this host sees it.
type thinCluster struct {
	cluster.Definition
	layout host.Layout
	config host.Config
	group  group.Group
	// mapper and windows are the kernel, or what poses as it in tests.
	mapper  devmapper.Mapper
	windows member.Windows
	log     *slog.Logger
}

// thinCluster finds the cluster of a name; "" is the one by default.
func (p *program) thinCluster(name string) (*thinCluster, error) {
	config, err := p.config()
	if err != nil {
		return nil, err
	}
	d, err := cluster.Choose(p.layout, config.Thin, name)
	if err != nil {
		return nil, err
	}
	return p.openCluster(config, d), nil
}

func (p *program) openCluster(config host.Config, d cluster.Definition) *thinCluster {
	log := p.logger()
	l := &lvm.LVM{Run: command.System{Log: log}, Devices: config.LVM.Devices, Timeout: time.Duration(config.LVM.Timeout)}
	t := &thinCluster{Definition: d, layout: p.layout, config: config, group: d.Group(l, p.layout.Dev()), mapper: devmapper.Kernel{}, log: log}
	t.windows = member.Native{Mapper: t.mapper}
	if p.kernel != nil {
		p.kernel(t)
	}
	return t
}

// thinArgs is what a verb on one cluster begins with.
func thinArgs(p *program, c *cli.Context, names ...string) (format, *thinCluster, []string, error) {
	f, err := outputOf(c)
	if err != nil {
		return f, nil, nil, err
	}
	words, err := operands(c, names...)
	if err != nil {
		return f, nil, nil, err
	}
	t, err := p.thinCluster(c.String("cluster"))
	return f, t, words, err
}

// readMap reads the cluster's map.
func (t *thinCluster) readMap(ctx context.Context) (layout.Map, error) {
	m, _, err := cluster.Map(ctx, t.group, t.UUID)
	return m, err
}

// streams are what the cluster's volumes are exported as.
func (t *thinCluster) streams() stream.Cluster { return stream.Cluster{UUID: t.UUID, Group: t.group} }

func thinVolume(name string) subject {
	return subject{schema: "diskhook.thin-change/v1", key: "volume", word: "volume", name: name}
}

func thinHost(name string) subject {
	return subject{schema: "diskhook.thin-change/v1", key: "host", word: "host", name: name}
}

func thinClusterNamed(name string) subject {
	return subject{schema: "diskhook.thin-change/v1", key: "cluster", word: "cluster", name: name}
}
