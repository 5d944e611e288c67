// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
)

// verb is a command of a noun that takes --output.
func (p *program) verb(name, usage, args string, act func(*program, *cli.Context) error, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: args, Flags: append(flags, outputFlag()),
		Action: func(c *cli.Context) error { return act(p, c) },
	}
}

// verbArgs is what such a verb begins with.
func verbArgs(p *program, c *cli.Context, names ...string) (format, *services, []string, error) {
	f, err := outputOf(c)
	if err != nil {
		return f, nil, nil, err
	}
	words, err := operands(c, names...)
	if err != nil {
		return f, nil, nil, err
	}
	s, err := p.services(c)
	return f, s, words, err
}

// fileArgs is what a verb on one domain's XML begins with: its file ("":
// standard input), and what the flags bind.
func fileArgs(p *program, c *cli.Context) (file string, s *services, written []bindings.Binding, err error) {
	words, err := operands(c, "[FILE]")
	if err != nil {
		return "", nil, nil, err
	}
	if s, err = p.services(c); err != nil {
		return "", nil, nil, err
	}
	written, err = flagBindings(c)
	return words[0], s, written, err
}
