// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/hooks/domains"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// prestageJobs is how many copies are made at the same time: one alone seldom
// uses what a disk can do, many take it from each other and from the guests.
const prestageJobs = 2

func prestageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "every bound domain that is shut off and lacks a copy"},
		&cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Value: prestageJobs, Usage: "make at most `N` copies at the same time"},
		&cli.BoolFlag{Name: "verify", Usage: "read each copy back, and compare it with its source, before it is complete"},
		&cli.BoolFlag{Name: "then-start", Usage: "start each domain when all its copies are ready"},
		bindFlag(), localFlag(), imageFlag(), xmlFlag(), connectFlag(), dryRunFlag(),
	}
}

// prestaged is what prestage did, or would do, for one domain.
type prestaged struct {
	Domain   string   `json:"domain"`
	Changed  bool     `json:"changed"`
	Commands []string `json:"commands"`
	Started  bool     `json:"started"`
	// Copies says with --verify what is known of each of them.
	Copies []verified `json:"copies,omitempty"`
	Error  string     `json:"error,omitempty"`
	Hint   string     `json:"hint,omitempty"`

	disks []localdisk.Disk
	err   error
}

func (d *prestaged) fail(err error) {
	d.err, d.Error, d.Hint = err, failure.OneLine(err.Error()), failure.OneLine(failure.HintOf(err))
}

func localPrestage(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	names, err := namedDisks(c)
	if err == nil {
		err = prestageUsage(c, names)
	}
	if err != nil {
		return err
	}
	s, err := p.services(c)
	if err != nil {
		return err
	}
	all := []*prestaged{}
	if c.Bool("all") {
		all, err = s.unstaged(c)
	} else {
		for _, n := range names {
			d := &prestaged{Domain: n.domain}
			if d.disks, err = boundDisks(p, c, s, n.domain, n.disks...); err != nil {
				d.fail(err)
			}
			all = append(all, d)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.err == nil {
			for i := range d.disks {
				d.disks[i].Verify = c.Bool("verify")
			}
			s.planPrestage(c, d)
			p.inVain(c, s, d)
		}
	}
	if !c.Bool("dry-run") {
		p.prestage(c, f, s, all)
	}
	return p.printPrestaged(f, c.Bool("dry-run"), all)
}

func prestageUsage(c *cli.Context, names []named) error {
	refuse := func(format string, args ...any) error { return see(c, failure.New(failure.Usage, format, args...)) }
	switch {
	case c.Bool("all") && len(names) > 0:
		return refuse("--all and names exclude each other")
	case c.Bool("all") && (c.Bool("then-start") || c.String("xml") != ""):
		return refuse("--then-start and --xml need names")
	case !c.Bool("all") && len(names) == 0:
		return refuse("NAME is missing")
	case c.String("xml") != "" && len(names) > 1:
		return refuse("--xml is of one domain")
	case c.Int("jobs") < 1:
		return refuse("--jobs %d: at least one", c.Int("jobs"))
	}
	return nil
}

// unstaged are the domains that are bound, do not run, and have disks without a
// complete copy: those that libvirt starts by itself first.
func (s *services) unstaged(c *cli.Context) ([]*prestaged, error) {
	bound, err := s.domains.List(c.Context)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(bound, func(a, b domains.Listed) int {
		if a.Facts.Autostart != b.Facts.Autostart {
			if a.Facts.Autostart {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Facts.Name, b.Facts.Name)
	})
	all := []*prestaged{}
	for _, l := range bound {
		if l.Facts.Active || l.Err == nil && bindings.SameDomain(l.Domain.Domain) != nil {
			continue // a clone is not bound before it is rebound
		}
		d := &prestaged{Domain: l.Facts.Name}
		if l.Err == nil {
			d.disks, l.Err = s.lacking(c, l.Domain)
		}
		if l.Err != nil {
			d.fail(l.Err)
		}
		if d.err != nil || len(d.disks) > 0 {
			all = append(all, d)
		}
	}
	return all, nil
}

// lacking are the bound disks of a domain whose copy is absent or unfinished.
func (s *services) lacking(c *cli.Context, d domains.Domain) ([]localdisk.Disk, error) {
	bound, _, err := bindings.Resolve(d.Domain, nil)
	if err != nil {
		return nil, err
	}
	disks, err := s.domains.LocalDisks(c.Context, d.Domain, bound)
	if err != nil || len(disks) == 0 {
		return nil, err
	}
	observed, err := s.local.Observe(c.Context, disks)
	if err != nil {
		return nil, err
	}
	var lack []localdisk.Disk
	for _, o := range observed {
		if o.Copy.State != localdisk.Ready {
			lack = append(lack, o.Disk)
		}
	}
	return lack, nil
}

func (s *services) planPrestage(c *cli.Context, d *prestaged) {
	commands, err := s.planned(c, d.disks)
	if err != nil {
		d.fail(err)
		return
	}
	d.Commands = orEmpty(commands)
	if c.Bool("then-start") {
		d.Commands = append(d.Commands, s.domains.Libvirt.Cmd(domains.VerbStart).String())
	}
	d.Changed = len(d.Commands) > 0
}

// inVain says which copies apply will not take; see localdisk's stale.go.
func (p *program) inVain(c *cli.Context, s *services, d *prestaged) {
	for _, disk := range d.disks {
		if disk.Fill != "" || disk.OVirt() || d.err != nil {
			continue
		}
		if info, err := s.local.Inspect(c.Context, disk); err == nil && info.Block {
			fmt.Fprintf(p.stderr, "diskhook: %s: it is not bound yet and its source is a block device, which does not tell whether a guest wrote to it: `diskhook domain apply` makes this copy again\n", harmless(disk.String()))
		}
	}
}

// prestage does the work for those that need it, and tells at once how it ended
// for each.
func (p *program) prestage(c *cli.Context, f format, s *services, all []*prestaged) {
	var todo []domains.Prestaging
	var of []*prestaged
	for _, d := range all {
		if d.err == nil && d.Changed {
			todo = append(todo, domains.Prestaging{Name: d.Domain, Disks: d.disks, Start: c.Bool("then-start")})
			of = append(of, d)
		} else {
			p.verified(s, d)
			p.summary(f, len(all), d)
		}
	}
	r := p.reporter(f)
	defer r.close()
	s.domains.PrestageAll(c.Context, todo, c.Int("jobs"), localdisk.Waiting{Notify: r.copies}, func(i int, err error) {
		d := of[i]
		if d.Started = err == nil && todo[i].Start; err != nil {
			d.fail(err)
		}
		p.verified(s, d)
		p.summary(f, len(all), d)
	})
}

// summary is the one line about a domain. What went wrong with the only one is
// said at the end.
func (p *program) summary(f format, of int, d *prestaged) {
	said := "done"
	switch {
	case f == inJSON || of == 1 && d.err != nil:
		return
	case d.err != nil:
		said = "failed: " + strings.TrimPrefix(failure.Line(d.err), "domain "+d.Domain+": ")
	case d.Started:
		said = "started"
	case !d.Changed:
		said = "nothing to do"
	case d.allVerified():
		said = "done, verified"
	}
	fmt.Fprintf(p.stderr, "diskhook: domain %s: %s\n", harmless(d.Domain), harmless(said))
}

func (p *program) printPrestaged(f format, dryRun bool, all []*prestaged) error {
	changes := false
	var failed []error
	for _, d := range all {
		changes = changes || d.Changed
		if d.err != nil {
			failed = append(failed, d.err)
		}
	}
	switch {
	case f == inJSON:
		if err := p.printJSON(map[string]any{
			"schema": "diskhook.local-prestage/v1", "dry_run": dryRun, "changed": changes, "domains": all,
		}); err != nil {
			return err
		}
	case dryRun:
		for _, d := range all {
			if d.err != nil || !d.Changed {
				p.summary(f, len(all), d)
				continue
			}
			if len(all) > 1 {
				fmt.Fprintf(p.stdout, "# domain %s\n", harmless(d.Domain))
			}
			for _, line := range d.Commands {
				fmt.Fprintln(p.stdout, harmless(line))
			}
		}
	case len(all) == 0:
		fmt.Fprintln(p.stderr, "diskhook: every copy is there")
	}
	if err := worst(failed, len(all)); err != nil {
		return err
	}
	if dryRun && changes {
		return wouldChange()
	}
	return nil
}

// worst is one of several failures: what needs somebody most. What may pass by
// itself comes last.
func worst(failed []error, of int) error {
	if len(failed) == 0 || of == 1 {
		return firstError(failed)
	}
	order := []*failure.Kind{
		nil, failure.Precondition, failure.NoSpace, failure.Conflict, failure.NotFound, failure.Problems, failure.Usage, failure.Temporary,
	}
	bad := slices.MinFunc(failed, func(a, b error) int {
		return slices.Index(order, kindOf(a)) - slices.Index(order, kindOf(b))
	})
	return fmt.Errorf("%d of %d failed, worst of them: %w", len(failed), of, bad)
}

func firstError(all []error) error {
	if len(all) == 0 {
		return nil
	}
	return all[0]
}
