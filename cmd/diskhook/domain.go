// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/hooks/domains"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

func domainCommand(p *program) *cli.Command {
	discard := func() cli.Flag {
		return &cli.BoolFlag{Name: "discard-guest-data", Usage: "give up what the guest wrote into its local copies"}
	}
	export := func() cli.Flag {
		return &cli.StringSliceFlag{Name: "export", Usage: "write a disk to a new `FILE` and go on with that; TARGET=FILE if there are several (repeatable)"}
	}
	refresh := &cli.BoolFlag{Name: "refresh", Usage: "accept that a disk's source is no longer what was recorded, and point it at its copy again"}
	verb := func(name, usage, args string, act func(*program, *cli.Context) error, flags ...cli.Flag) *cli.Command {
		return p.verb(name, usage, args, act, append(flags, connectFlag())...)
	}
	return &cli.Command{
		Name: "domain", Usage: "bind the disks of libvirt's domains",
		Subcommands: []*cli.Command{
			verb("apply", "bind disks: rewrite the definition once, and fill the copies", "NAME", domainApply,
				bindFlag(), localFlag(), quorumFlag(), volumeFlag(), imageFlag(), thinFlag(), refresh, dryRunFlag()),
			verb("plan", "show what apply would do; the same as apply -n", "NAME", domainPlan,
				bindFlag(), localFlag(), quorumFlag(), volumeFlag(), imageFlag(), thinFlag(), refresh),
			verb("revert", "give disks their origins back, or a file with what the guest wrote, and remove their copies", "NAME [TARGET]", domainRevert,
				export(), discard(), dryRunFlag()),
			verb("rebind", "give a cloned definition bindings and copies of its own", "NAME", domainRebind, discard(), dryRunFlag()),
			verb("unbind", "take bindings out of a cloned or damaged definition", "NAME", domainUnbind, discard(), dryRunFlag()),
			verb("list", "list bound domains", "", domainList),
		},
	}
}

func domainPlan(p *program, c *cli.Context) error  { return apply(p, c, true) }
func domainApply(p *program, c *cli.Context) error { return apply(p, c, c.Bool("dry-run")) }

func apply(p *program, c *cli.Context, dryRun bool) error {
	f, s, words, err := verbArgs(p, c, "NAME")
	if err != nil {
		return err
	}
	written, err := flagBindings(c)
	if err != nil {
		return err
	}
	plan, err := s.domains.PlanApply(c.Context, words[0], written, c.Bool("refresh"))
	if err != nil {
		return err
	}
	return p.carryOut(f, s, plan, dryRun, func() error { return p.fill(c, f, s, plan) })
}

// fill does a plan that makes copies, and shows how they go on.
func (p *program) fill(c *cli.Context, f format, s *services, plan *domains.Plan) error {
	r := p.reporter(f)
	defer r.close()
	return s.domains.Apply(c.Context, plan, localdisk.Waiting{Notify: r.copies})
}

func domainRevert(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "NAME", "[TARGET]")
	if err != nil {
		return err
	}
	g := domains.GivingUp{DiscardGuestData: c.Bool("discard-guest-data")}
	if g.Export, err = exportFiles(c); err != nil {
		return err
	}
	var targets []string
	if words[1] != "" {
		targets = words[1:]
	}
	plan, err := s.domains.PlanRevert(c.Context, words[0], targets, g)
	if err != nil {
		return err
	}
	return p.carryOut(f, s, plan, c.Bool("dry-run"), func() error {
		r := p.reporter(f)
		defer r.close()
		return s.domains.Revert(c.Context, plan, r.work("export of domain "+plan.Domain.Name))
	})
}

// exportFiles are the files that --export names, by target; "" is the only disk.
func exportFiles(c *cli.Context) (map[string]string, error) {
	asked, files := c.StringSlice("export"), map[string]string{}
	for i, text := range asked {
		target, file, named := strings.Cut(text, "=")
		if !named {
			target, file = "", text
		}
		path, err := absolute(file)
		if err != nil {
			return nil, err
		}
		if _, err := imageFormat("", path, func(_, other string) []string {
			argv := []string{"diskhook", "domain", "revert"}
			if c.Bool("discard-guest-data") {
				argv = append(argv, "--discard-guest-data")
			}
			for j, text := range asked {
				if j == i {
					text = strings.TrimSuffix(text, file) + other
				}
				argv = append(argv, "--export", text)
			}
			return append(argv, c.Args().Slice()...)
		}); err != nil {
			return nil, err
		}
		files[target] = path
	}
	return files, nil
}

func domainRebind(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "NAME")
	if err != nil {
		return err
	}
	plan, err := s.domains.PlanRebind(c.Context, words[0], c.Bool("discard-guest-data"))
	if err != nil {
		return err
	}
	return p.carryOut(f, s, plan, c.Bool("dry-run"), func() error { return p.fill(c, f, s, plan) })
}

func domainUnbind(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "NAME")
	if err != nil {
		return err
	}
	plan, err := s.domains.PlanUnbind(c.Context, words[0], c.Bool("discard-guest-data"))
	if err != nil {
		return err
	}
	return p.carryOut(f, s, plan, c.Bool("dry-run"), func() error { return s.domains.Unbind(c.Context, plan) })
}

// carryOut prints a plan and, unless it is a dry run, does it. A plan that
// changes nothing is fine and says so.
func (p *program) carryOut(f format, s *services, plan *domains.Plan, dryRun bool, act func() error) error {
	changes := plan.Changes()
	if changes && !dryRun {
		p.notes(plan)
		if err := act(); err != nil {
			return err
		}
	}
	if err := p.printPlan(f, s, plan, dryRun); err != nil {
		return err
	}
	if changes && dryRun {
		return wouldChange()
	}
	return nil
}

func (p *program) notes(plan *domains.Plan) {
	for _, skipped := range plan.Skipped {
		fmt.Fprintf(p.stderr, "diskhook: disk %s: not bound: %s\n", harmless(skipped.Target), skipped.Why)
	}
	for _, note := range plan.Notes {
		fmt.Fprintf(p.stderr, "diskhook: %s\n", harmless(note))
	}
}

func (p *program) printPlan(f format, s *services, plan *domains.Plan, dryRun bool) error {
	d := plan.Domain
	switch {
	case f == inJSON:
		notes := plan.Notes
		if !dryRun {
			notes = append(notes, plan.Outcome()...)
		}
		return p.printJSON(map[string]any{
			"schema": "diskhook.plan/v1", "domain": d.Name, "uuid": d.UUID, "dry_run": dryRun, "changed": plan.Changes(),
			"commands": orEmpty(plan.Commands(s.domains.Libvirt)), "diff": plan.Diff(), "notes": orEmpty(notes),
		})
	case f == asNames:
		_, err := fmt.Fprintln(p.stdout, harmless(d.Name))
		return err
	case !plan.Changes():
		fmt.Fprintf(p.stderr, "diskhook: domain %s: nothing to do\n", harmless(d.Name))
		return nil
	case !dryRun:
		done := strings.Join(append([]string{"done"}, plan.Outcome()...), "; ")
		fmt.Fprintf(p.stderr, "diskhook: domain %s: %s\n", harmless(d.Name), harmless(done))
		return nil
	}
	p.notes(plan)
	for _, step := range plan.Fill {
		fmt.Fprintf(p.stdout, "# %s\n", harmless(step.What))
	}
	for _, line := range plan.Commands(s.domains.Libvirt) {
		fmt.Fprintln(p.stdout, harmless(line))
	}
	_, err := fmt.Fprint(p.stdout, plan.Diff())
	return err
}

// boundDomain is one bound disk as domain list prints it.
type boundDomain struct {
	Name    string `json:"name"`
	UUID    string `json:"uuid"`
	State   string `json:"state"`
	Target  string `json:"target"`
	Binding string `json:"binding"`
	Origin  string `json:"origin"`
	Problem string `json:"problem"`
}

func domainList(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	all, err := s.domains.List(c.Context)
	if err != nil {
		return err
	}
	items := []boundDomain{}
	l := listing{
		schema: "diskhook.domains/v1", member: "disks",
		header: []string{"NAME", "STATE", "TARGET", "BINDING", "ORIGIN", "PROBLEM"}, ifEmpty: "no domain is bound",
	}
	seen := map[string]bool{}
	for _, d := range all {
		if !seen[d.UUID] {
			seen[d.UUID] = true
			l.names = append(l.names, d.Facts.Name)
		}
		if d.Metadata == nil {
			items = append(items, boundDomain{Name: d.Facts.Name, UUID: d.Facts.UUID, State: d.Facts.State, Problem: problemOf(d)})
			continue
		}
		for _, e := range d.Metadata.Disks {
			items = append(items, boundDomain{
				Name: d.Facts.Name, UUID: d.Facts.UUID, State: d.Facts.State,
				Target: e.Target, Binding: describeBinding(&e), Origin: originOf(&e), Problem: problemOf(d),
			})
		}
	}
	for _, i := range items {
		l.rows = append(l.rows, []string{i.Name, i.State, i.Target, i.Binding, i.Origin, i.Problem})
	}
	l.items = items
	return p.print(f, l)
}

func problemOf(d domains.Listed) string {
	err := d.Err
	if err == nil {
		err = bindings.SameDomain(d.Domain.Domain)
	}
	if err == nil {
		return ""
	}
	return failure.Line(err)
}
