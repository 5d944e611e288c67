// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"diskhook/storage/failure"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/membership"
)

func thinFencedVerb(p *program) *cli.Command {
	return p.thinVerb("on-fenced", "say that a host cannot write any more", "HOST", thinOnFenced, epochFlag("default: the one that this host is master in"),
		&cli.StringFlag{Name: "evidence", Usage: "how that is known: `KIND:TEXT`, KIND being fence-agent, sanlock or operator (default, at a terminal: you type the host's name)"}, dryRunFlag())
}

func thinOnFenced(p *program, c *cli.Context) error {
	f, t, words, err := thinArgs(p, c, "HOST")
	if err != nil {
		return err
	}
	m, err := t.readMap(c.Context)
	if err != nil {
		return err
	}
	host, err := cluster.Host(m, words[0])
	if err != nil {
		return err
	}
	standing, err := t.standing(c.Context)
	if err != nil {
		return err
	}
	epoch := c.Uint64("epoch")
	if !c.IsSet("epoch") {
		epoch = standing.Epoch
	}
	var evidence membership.Evidence
	if c.IsSet("evidence") {
		if evidence, err = membership.ParseEvidence(c.String("evidence")); err != nil {
			return err
		}
	} else if !c.Bool("dry-run") {
		if evidence, err = p.typed(host.Name); err != nil {
			return err
		}
	}
	steps := []string{"# mark host " + host.Name + " as fenced"}
	if c.IsSet("evidence") {
		steps[0] += ": " + evidence.String()
	}
	if c.Bool("dry-run") {
		if err := t.reigning(standing); err != nil {
			return err
		}
		if host.State != layout.Member {
			steps = nil
		}
	}
	return p.change(f, c.Bool("dry-run"), thinHost(host.Name), steps, func() (string, error) {
		return "fenced; `diskhook thin recover " + host.Name + "` gives its volumes free", t.master().Fence(c.Context, host.Name, epoch, evidence.String())
	})
}

// typed asks whoever is at the terminal to type the name of a host that is off. What
// comes out of a pipe is nobody's word.
func (p *program) typed(host string) (membership.Evidence, error) {
	if in, ok := p.stdin.(*os.File); !ok || !term.IsTerminal(int(in.Fd())) {
		err := failure.New(failure.Usage, "host %s: nobody is at a terminal to say that it cannot write", harmless(host))
		return membership.Evidence{}, failure.Hint(err, "say how that is known: `diskhook thin on-fenced --evidence KIND:TEXT %s`, KIND being fence-agent, sanlock or operator", host)
	}
	fmt.Fprintf(p.stderr, "Host %s must be switched off, or cut off from the disk: if it still writes, data are lost.\nType its name to say that it is: ", harmless(host))
	line, err := bufio.NewReader(io.LimitReader(p.stdin, 256)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return membership.Evidence{}, fmt.Errorf("host %s: read its name: %w", host, err)
	}
	return membership.Typed(host, line, time.Now().UTC().Format(time.RFC3339))
}
