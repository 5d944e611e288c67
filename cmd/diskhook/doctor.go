// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"diskhook/cmd/diskhook/doctor"
	"diskhook/storage/command"
	"diskhook/storage/failure"
)

func doctorCommand(p *program) *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "look whether this host is ready, and say what to do; exit 8 if a check fails",
		Flags:  []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error { return examine(p, c) },
	}
}

func examine(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	if _, err := operands(c); err != nil {
		return err
	}
	config, wrong := p.config() // a finding, not the end
	log := p.logger()
	local, err := p.localService(config, log)
	if err != nil {
		return err
	}
	findings := doctor.Examine(c.Context, &doctor.Host{
		Layout: p.layout, Config: config, ConfigErr: wrong, Run: command.System{Log: log}, Log: log, Local: local,
		DomainProgram: pathOf("DISKHOOK_DOMAIN_PROGRAM", domainProgram), Proc: filepath.Join("/", p.layout.Root, "proc"),
	})
	l := listing{schema: "diskhook.doctor/v1", member: "findings", items: findings}
	failures := 0
	for _, finding := range findings {
		if finding.Level != doctor.OK {
			l.names = append(l.names, finding.Check)
		}
		if finding.Level == doctor.Fail {
			failures++
		}
	}
	if f == table {
		err = p.printFindings(findings)
	} else {
		err = p.print(f, l)
	}
	if err != nil || failures == 0 {
		return err
	}
	return failure.New(failure.Problems, "%d of %d findings are failures", failures, len(findings))
}

// printFindings gives each its own line or two: fixes are too long for a table.
func (p *program) printFindings(findings []doctor.Finding) error {
	for _, f := range findings {
		if _, err := fmt.Fprintf(p.stdout, "%-4s  %-14s  %s\n", f.Level, f.Check, harmless(f.Message)); err != nil {
			return err
		}
		if f.Fix != "" {
			if _, err := fmt.Fprintf(p.stdout, "%22s→ %s\n", "", harmless(f.Fix)); err != nil {
				return err
			}
		}
	}
	return nil
}
