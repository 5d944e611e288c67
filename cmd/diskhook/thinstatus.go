// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/thin/claim"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/status"
)

func thinStatusVerbs(p *program) []*cli.Command {
	return []*cli.Command{
		p.thinVerb("status", "show capacity, hosts and volumes of the cluster", "", thinStatus),
		p.thinVerb("check", "look whether everything on the volume group agrees; exit 8 if not", "", thinCheck,
			&cli.BoolFlag{Name: "offline", Usage: "no host's pool runs: look at the metadata of all of them"},
			&cli.BoolFlag{Name: "rebuild-map", Usage: "make the map anew if it is lost; needs --offline, and every host has to join again"}, dryRunFlag()),
	}
}

func thinStatus(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	m, stamp, err := cluster.Map(c.Context, t.group, t.UUID)
	if err != nil {
		return err
	}
	s := status.Of(t.Name, t.UUID, m, stamp)
	t.withPool(c.Context, &s)
	t.withDomains(&s)
	if f == inJSON {
		return p.printJSON(s)
	}
	volumes := listing{header: []string{"VOLUME", "SIZE", "STATE", "HOST", "OWN", "SHARED", "GENERATION", "DOMAIN"}}
	for _, v := range s.Volumes {
		own := ""
		if v.Own != nil {
			own = size(int64(*v.Own))
		}
		domain := v.Domain
		if v.LocalCopy {
			domain += " (local copy)"
		}
		volumes.names = append(volumes.names, v.Name)
		volumes.rows = append(volumes.rows, []string{v.Name, size(int64(v.Size)), v.State, v.Host, own, size(int64(v.Shared)), strconv.FormatUint(v.Generation, 10), domain})
	}
	if f == asNames {
		return p.print(f, volumes)
	}
	return p.printThinStatus(s, volumes)
}

// withPool adds what this host's kernel tells, where it has a pool to tell of. That
// it cannot tell is no reason to say nothing of the cluster.
func (t *thinCluster) withPool(ctx context.Context, s *status.Status) {
	m, err := t.member(ctx)
	if err != nil {
		t.log.Info("this host has no pool here", "err", err)
		return
	}
	here, err := m.Status(ctx)
	if err != nil || here.Pool == nil {
		t.log.Info("the pool of this host does not run", "err", err)
		return
	}
	s.WithPool(here.Number, *here.Pool)
}

// withDomains adds which domains of this host have volumes, or local copies in them.
// What cannot be read of that is told by whoever needs it.
func (t *thinCluster) withDomains(s *status.Status) {
	claims, err := claim.Open(t.layout, t.Name)
	labels, noName := claim.OpenLabels(t.layout, t.Name)
	for i, v := range s.Volumes {
		holder, unread := claims.Holder(v.Name)
		label, damaged := labels.Of(v.Name)
		s.Volumes[i].Domain = holder
		if label != nil && label.Volume == v.UUID {
			s.Volumes[i].Domain, s.Volumes[i].LocalCopy = localdisk.OwnerOf(label.Tags), true
		}
		if failed := errors.Join(err, noName, unread, damaged); failed != nil {
			t.log.Warn("which domain has the volume is not known", "cluster", t.Name, "volume", v.Name, "err", failed)
		}
	}
}

func thinCheck(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	if c.Bool("rebuild-map") {
		return thinRebuildMap(p, c, f, t)
	}
	findings, err := t.master().Check(c.Context, master.CheckOptions{Offline: c.Bool("offline")})
	if err != nil {
		return err
	}
	l := listing{
		schema: "diskhook.thin-findings/v1", member: "findings", items: append([]master.Finding{}, findings...),
		header: []string{"OBJECT", "RULE", "PROBLEM", "WAY OUT"}, ifEmpty: "cluster " + t.Name + ": everything agrees",
	}
	for _, x := range findings {
		rule := ""
		if x.Rule > 0 {
			rule = strconv.Itoa(x.Rule)
		}
		l.names = append(l.names, x.Object)
		l.rows = append(l.rows, []string{x.Object, rule, x.Text, x.Hint})
	}
	if err := p.print(f, l); err != nil || len(findings) == 0 {
		return err
	}
	return failure.New(failure.Problems, "cluster %s: %d problems", t.Name, len(findings))
}

// thinRebuildMap has the map made of what else there is; one that is whole is left
// alone.
func thinRebuildMap(p *program, c *cli.Context, f format, t *thinCluster) error {
	var steps []string
	if _, err := t.readMap(c.Context); err != nil {
		steps = []string{
			"# make the map anew, of the stored mappings and the metadata of all hosts",
			"# take every volume offline; every host has to join again",
		}
	}
	of := thinClusterNamed(t.Name)
	var made master.Rebuilt
	of.result = func() any { return made }
	return p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) {
		var err error
		made, err = t.master().RebuildMap(c.Context, c.Bool("offline"))
		text := fmt.Sprintf("the map is made anew, %d volumes are offline, this host is master of epoch %d", len(made.Volumes), made.Epoch)
		for _, h := range made.Hosts {
			text += fmt.Sprintf("; run `diskhook thin init-host --rejoin %s`", h)
		}
		return text, err
	})
}

// printThinStatus prints tables for people: the cluster, its hosts, this host's pool and
// the volumes.
func (p *program) printThinStatus(s status.Status, volumes listing) error {
	a := s.Capacity
	tables := []listing{
		{header: []string{"CLUSTER", "SIZE", "FREE", "GRANTED", "OFFLINE", "SHARED", "VIRTUAL", "EPOCH"}, rows: [][]string{{
			s.Cluster, size(int64(a.Total)), size(int64(a.Free)), size(int64(a.Granted)), size(int64(a.Offline)), size(int64(a.Shared)),
			fmt.Sprintf("%s (%.2f x)", size(int64(a.Virtual)), a.Overcommit), strconv.FormatUint(s.Epoch, 10),
		}}},
		{header: []string{"HOST", "STATE", "GRANTED", "VOLUMES", "VIRTUAL", "EVIDENCE"}},
	}
	for _, h := range s.Hosts {
		tables[1].rows = append(tables[1].rows, []string{h.Name, h.State, size(int64(h.Granted)), strconv.Itoa(h.Volumes), size(int64(h.Virtual)), h.Evidence})
	}
	if s.Pool != nil {
		tables = append(tables, listing{header: []string{"POOL", "SLACK", "DATA", "METADATA"}, rows: [][]string{{
			s.Pool.Mode, size(int64(s.Pool.Slack)), fmt.Sprintf("%.0f %%", s.Pool.DataPercent), fmt.Sprintf("%.0f %%", s.Pool.MetadataPercent),
		}}})
	}
	for i, l := range append(tables, volumes) {
		if len(l.rows) == 0 {
			continue
		}
		if i > 0 {
			fmt.Fprintln(p.stdout)
		}
		if err := p.printTable(l.header, l.rows); err != nil {
			return err
		}
	}
	return nil
}
