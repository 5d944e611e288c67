// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

func adoptFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "take over every volume that oVirt's own hook made, where there is no doubt whose it is"},
		bindFlag(), localFlag(), xmlFlag(), connectFlag(), dryRunFlag(),
	}
}

func localAdopt(p *program, c *cli.Context) error {
	if c.Bool("all") {
		return adoptAll(p, c)
	}
	f, s, words, err := verbArgs(p, c, "NAME", "TARGET")
	if err != nil {
		return err
	}
	disks, err := boundDisks(p, c, s, words[0], words[1])
	if err != nil {
		return err
	}
	taken, err := s.local.Adopted(c.Context, disks[0])
	if err != nil {
		return err
	}
	var steps []string
	if !taken {
		steps = append(steps, fmt.Sprintf("take over the copy %s of disk %s", disks[0].CopyName(), words[1]))
	}
	return p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, done(func() error {
		return s.local.Adopt(c.Context, disks[0])
	}))
}

// adoptAll takes over what oVirt's hook made. One that fails does not stop the
// others.
func adoptAll(p *program, c *cli.Context) error {
	f, s, _, err := verbArgs(p, c)
	if err != nil {
		return err
	}
	all, err := s.local.Adoptions(c.Context)
	if err != nil {
		return err
	}
	dryRun, changes := c.Bool("dry-run"), false
	var failed []error
	for i := range all {
		a := &all[i]
		changes = changes || a.Take
		if !a.Take || dryRun {
			continue
		}
		if err := s.local.AdoptOVirt(c.Context, *a); err != nil {
			failed = append(failed, err)
			a.Take, a.Reason = false, failure.OneLine(err.Error())
		}
	}
	if err := p.print(f, adoptions(all, dryRun)); err != nil {
		return err
	}
	if err := worst(failed, len(all)); err != nil {
		return err
	}
	if dryRun && changes {
		return wouldChange()
	}
	return nil
}

func adoptions(all []localdisk.Adoption, dryRun bool) listing {
	if all == nil {
		all = []localdisk.Adoption{}
	}
	l := listing{
		schema: "diskhook.local-adopt/v1", member: "volumes", items: all,
		header:  []string{"VOLUME", "DOMAIN", "IMAGE", "BACKEND", "SIZE", "DECISION", "REASON"},
		ifEmpty: "no volumes of oVirt's hook",
	}
	for _, a := range all {
		decision := "left alone"
		switch {
		case a.Take && dryRun:
			decision = "would adopt"
		case a.Take:
			decision = "adopted"
		}
		if a.Take {
			l.names = append(l.names, a.Domain+"/"+a.Image)
		}
		l.rows = append(l.rows, []string{a.Volume, a.Domain, a.Image, a.Backend, size(a.Bytes), decision, a.Reason})
	}
	return l
}
