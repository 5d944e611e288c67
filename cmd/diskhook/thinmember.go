// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/member"
)

// memberVerb is a verb that this host does as a member of the cluster.
func (p *program) memberVerb(name, usage, args string, act func(*program, *cli.Context) error, flags ...cli.Flag) *cli.Command {
	return p.thinVerb(name, usage, args, act, append(flags,
		&cli.DurationFlag{Name: "deadline", Value: masterDeadline, Usage: "wait for the master's answer no longer than `TIME`"}, dryRunFlag())...)
}

// thinMember is this host in a cluster, with the map as it was when the verb began.
type thinMember struct {
	*thinCluster
	*member.Member
	known  layout.Map
	record layout.HostRecord
}

func thinMemberArgs(p *program, c *cli.Context, names ...string) (format, *thinMember, []string, error) {
	f, t, words, err := thinArgs(p, c, names...)
	if err == nil && c.Duration("deadline") <= 0 {
		err = see(c, failure.New(failure.Usage, "--deadline %v: nobody answers in no time", c.Duration("deadline")))
	}
	if err != nil {
		return f, nil, nil, err
	}
	m, err := t.standIn(c.Context)
	if err == nil {
		m.Deadline = c.Duration("deadline")
	}
	return f, m, words, err
}

// standIn finds this host in the map, and in the cluster.
func (t *thinCluster) standIn(ctx context.Context) (*thinMember, error) {
	name, err := t.ThisHost()
	if err != nil {
		return nil, err
	}
	m := &thinMember{thinCluster: t}
	if m.known, err = t.readMap(ctx); err != nil {
		return nil, err
	}
	if m.record, err = cluster.Member(m.known, name); err != nil {
		return nil, err
	}
	m.Member, err = t.member(ctx)
	return m, err
}

// ask is a step that the master does.
func (t *thinMember) ask(format string, args ...any) []string {
	return []string{"# master of " + t.thinCluster.Name + ": " + fmt.Sprintf(format, args...)}
}

// change prints or does what a verb of a member is about to do.
func (t *thinMember) change(p *program, c *cli.Context, f format, of subject, steps []string, act func(context.Context) (string, error)) error {
	return p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) { return act(c.Context) })
}
