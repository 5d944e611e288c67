// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func acceptFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "unproven", Usage: "also where its size, time or header differ: I know that its data is the same"},
		connectFlag(), dryRunFlag(),
	}
}

// localAccept takes the operator's word that an overlay's source is what it was.
func localAccept(p *program, c *cli.Context) error {
	f, s, words, domain, key, err := copyArgs(p, c)
	if err != nil {
		return err
	}
	if err := s.domains.MayAccept(c.Context, domain, key); err != nil {
		return err
	}
	unproven := c.Bool("unproven")
	differs, err := s.local.Accepting(c.Context, domain, key, unproven)
	if err != nil {
		return err
	}
	var steps []string
	if differs != nil {
		steps = append(steps, fmt.Sprintf("accept the source of disk %s: %s", words[1], differs))
	}
	return p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, done(func() error {
		return s.local.AcceptSource(c.Context, domain, key, unproven)
	}))
}
