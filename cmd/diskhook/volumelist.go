// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/managed"
)

func volumeList(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	all, damaged := s.volumes.List(c.Context)
	if len(all) == 0 && damaged != nil {
		return damaged
	}
	l := listing{
		schema: "diskhook.volumes/v1", member: "volumes", items: append([]managed.Volume{}, all...),
		header: []string{"ID", "TYPE", "DEFINED", "ATTACHED", "DOMAIN", "PATH", "PROBLEM"}, ifEmpty: "no volumes",
	}
	for _, v := range all {
		l.names = append(l.names, v.ID)
		l.rows = append(l.rows, []string{v.ID, v.Type, yesNo(v.Defined), yesNo(v.Attached), v.Domain, v.Path, string(v.Problem)})
	}
	if err := p.print(f, l); err != nil {
		return err
	}
	return damaged
}

func volumeInfo(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	ids, err := operandList(c, "ID")
	if err != nil {
		return err
	}
	s, err := p.services(c)
	if err != nil {
		return err
	}
	all, err := s.volumes.Describe(c.Context, ids...)
	if err != nil {
		return err
	}
	l := listing{
		schema: "diskhook.volumes-info/v1", member: "volumes", items: all,
		header: []string{"ID", "EXISTS", "PATH", "CONNECTION"},
	}
	if len(ids) == 0 {
		l.ifEmpty = "no volumes"
	}
	for _, v := range all {
		exists := ""
		if v.Exists != nil {
			exists = yesNo(*v.Exists)
		}
		l.names = append(l.names, v.ID)
		l.rows = append(l.rows, []string{v.ID, exists, v.Path, string(v.Connection)})
	}
	if err := p.print(f, l); err != nil {
		return err
	}
	for _, id := range ids {
		if !slices.Contains(l.names, id) {
			err := failure.New(failure.NotFound, "volume %q: neither defined nor attached on this host", id)
			return failure.Hint(err, "see `diskhook volume list`")
		}
	}
	return nil
}

// volumeConnector prints what goes to the storage side, hence always JSON.
func volumeConnector(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	properties, err := s.volumes.ConnectorInfo(c.Context)
	if err != nil {
		return coded(err)
	}
	if f == asNames {
		_, err := fmt.Fprintln(p.stdout, harmless(properties.Host))
		return err
	}
	return p.printJSON(properties)
}

func volumeDevices(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	all, err := s.volumes.Devices(c.Context)
	if err != nil {
		return err
	}
	l := listing{
		schema: "diskhook.devices/v1", member: "devices", items: all,
		header: []string{"DEVICE", "KIND", "SIZE", "WWN", "PATHS", "USED BY"}, ifEmpty: "no devices but those of managed volumes",
	}
	for _, d := range all {
		l.names = append(l.names, d.Path)
		l.rows = append(l.rows, []string{d.Path, d.Kind, size(d.Size), d.WWN, strings.Join(d.Paths, " "), strings.Join(d.UsedBy, " ")})
	}
	return p.print(f, l)
}

// activeDomains are the domains that libvirt says run, by UUID.
func (s *services) activeDomains(ctx context.Context) (map[string]bool, error) {
	all, err := s.domains.Libvirt.List(ctx, false)
	active := map[string]bool{}
	for _, d := range all {
		active[d.UUID] = d.Active
	}
	return active, err
}

func volumeReconcile(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	s.volumes.Active = s.activeDomains
	apply := c.Bool("yes") && !c.Bool("dry-run")
	findings, err := s.volumes.Reconcile(c.Context, apply)
	if err != nil {
		return err
	}
	l := listing{
		schema: "diskhook.volumes-reconciled/v1", member: "findings", items: append([]managed.Finding{}, findings...),
		header: []string{"VOLUME", "PROBLEM", "ACTION", "DONE", "ERROR"}, ifEmpty: "database, links and kernel agree",
	}
	todo, left := 0, 0
	for _, x := range findings {
		l.names = append(l.names, x.Volume)
		l.rows = append(l.rows, []string{x.Volume, string(x.Problem), x.Action, yesNo(x.Done), x.Error})
		switch {
		case x.Action == "" || x.Error != "":
			left++
		case !x.Done:
			todo++
		}
	}
	if err := p.print(f, l); err != nil {
		return err
	}
	switch {
	case left > 0:
		return failure.New(failure.Problems, "%d of %d findings are left to you", left, len(findings))
	case todo > 0:
		return wouldChange()
	}
	return nil
}
