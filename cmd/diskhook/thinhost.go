// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/member"
)

func thinHostVerbs(p *program) []*cli.Command {
	quantum := func() cli.Flag {
		return &cli.StringFlag{Name: "quantum", Usage: "ask for `SIZE` at a time (default: 1 GiB, or a hundredth of a host's share)"}
	}
	return []*cli.Command{
		p.memberVerb("start", "start this host's pool, and the devices of its volumes", "", thinStart),
		p.memberVerb("stop", "stop this host's pool; its volumes stay its own", "", thinStop),
		p.memberVerb("request", "ask the master for space, and use it", "[SIZE]", thinRequest),
		p.memberVerb("use", "use what the master granted this host", "", thinUse),
		p.memberVerb("free", "give space back that no volume of this host uses", "SIZE", thinFree),
		p.memberVerb("rebuild", "write this host's metadata anew, without what is parked in them", "", thinRebuild),
		p.memberVerb("drain", "detach this host's volumes, stop its pool and leave the cluster", "", thinDrain),
		p.thinVerb("monitor", "keep this host's pool supplied, or serve the hosts as their master, until stopped", "", thinMonitor,
			&cli.BoolFlag{Name: "master", Usage: "answer what hosts ask for (on the master)"}, quantum()),
	}
}

// thinHostArgs is what a verb on this host's pool begins with.
func thinHostArgs(p *program, c *cli.Context, names ...string) (format, *thinMember, []string, subject, error) {
	f, t, words, err := thinMemberArgs(p, c, names...)
	if err != nil {
		return f, nil, nil, subject{}, err
	}
	return f, t, words, thinHost(t.record.Name), nil
}

func thinStart(p *program, c *cli.Context) error {
	f, t, _, of, err := thinHostArgs(p, c)
	if err != nil {
		return err
	}
	steps := []string{"# start the pool of host " + t.record.Name}
	for _, v := range t.known.Volumes {
		if v.Host == t.record.Number && v.State.On() {
			steps = append(steps, "# make "+t.Path(v.Name))
		}
	}
	if c.Bool("dry-run") {
		switch there, err := t.Started(c.Context); {
		case err != nil:
			return err
		case there:
			steps = nil
		}
	}
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) { return "started", t.Start(ctx) })
}

// thinStop asks neither the map nor the master: what a host that was fenced has left
// in its kernel has to go before it is let in again.
func thinStop(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	name, err := t.ThisHost()
	if err != nil {
		return err
	}
	steps := []string{"# remove the devices of host " + name + " and its pool"}
	here, err := t.local()
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		switch runs, err := here.Stoppable(c.Context); {
		case err != nil:
			return err
		case !runs:
			steps = nil
		}
	}
	return p.change(f, c.Bool("dry-run"), thinHost(name), steps, func() (string, error) { return "stopped", here.Stop(c.Context) })
}

// slack says how a host stands after it got blocks.
func (t *thinMember) slack(s member.Slack) string {
	text := fmt.Sprintf("%s free, %s of them now", size(int64(s.Free*t.known.BlockSize)), size(int64(s.Used*t.known.BlockSize)))
	if s.Parked > 0 {
		text += fmt.Sprintf("; `diskhook thin rebuild` frees %s more", size(int64(s.Parked*t.known.BlockSize)))
	}
	return text
}

func thinRequest(p *program, c *cli.Context) error {
	f, t, words, of, err := thinHostArgs(p, c, "[SIZE]")
	if err != nil {
		return err
	}
	blocks := cluster.Quantum(t.known)
	if words[0] != "" {
		if blocks, err = t.blocks(words[0]); err != nil {
			return err
		}
	}
	if c.Bool("dry-run") { // else the master says whether it can
		if err := t.Ready(c.Context); err != nil {
			return err
		}
		if _, _, err := ledger.Grant(t.known, t.record.Number, blocks); err != nil {
			return err
		}
	}
	steps := t.ask("grant host %s %d blocks of %d bytes", t.record.Name, blocks, t.known.BlockSize)
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) {
		s, err := t.Request(ctx, blocks)
		return t.slack(s), err
	})
}

// blocks is how many blocks a size takes.
func (t *thinMember) blocks(text string) (uint64, error) {
	n, err := host.ParseSize(text)
	if err == nil && n <= 0 {
		err = failure.New(failure.Usage, "size %q: it is not positive", text)
	}
	if err != nil {
		return 0, err
	}
	return cluster.BlocksFor(t.known, uint64(n)), nil
}

func thinUse(p *program, c *cli.Context) error {
	f, t, _, of, err := thinHostArgs(p, c)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		if _, err := t.Spare(c.Context); err != nil {
			return err
		}
	}
	steps := []string{"# discard in disk 0 what the map gives host " + t.record.Name}
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) {
		s, err := t.Use(ctx)
		return t.slack(s), err
	})
}

func thinFree(p *program, c *cli.Context) error {
	f, t, words, of, err := thinHostArgs(p, c, "SIZE")
	if err != nil {
		return err
	}
	blocks, err := t.blocks(words[0])
	if err != nil {
		return err
	}
	steps := t.ask("take up to %d blocks of %d bytes back from host %s", blocks, t.known.BlockSize, t.record.Name)
	if c.Bool("dry-run") {
		switch spare, err := t.Spare(c.Context); {
		case err != nil:
			return err
		case spare == 0:
			steps = nil
		}
	}
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) {
		given, err := t.Free(ctx, blocks)
		return size(int64(given*t.known.BlockSize)) + " given back", err
	})
}

func thinRebuild(p *program, c *cli.Context) error {
	f, t, _, of, err := thinHostArgs(p, c)
	if err != nil {
		return err
	}
	steps := []string{"# write the metadata of host " + t.record.Name + " anew, and hand its pool over to them"}
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) { return "rebuilt", t.Rebuild(ctx) })
}

func thinDrain(p *program, c *cli.Context) error {
	f, t, _, of, err := thinHostArgs(p, c)
	if errors.Is(err, cluster.ErrNoMember) {
		return thinDrained(p, c, err)
	}
	if err != nil {
		return err
	}
	here := slices.DeleteFunc(slices.Clone(t.known.Volumes), func(v layout.VolumeRecord) bool {
		return v.Host != t.record.Number || !v.State.On()
	})
	var steps []string
	for _, v := range here {
		steps = append(steps, t.ask("detach volume %s from host %s", v.Name, t.record.Name)...)
	}
	if c.Bool("dry-run") {
		if err := t.drainable(c.Context, here); err != nil {
			return err
		}
	}
	steps = append(steps, "# stop the pool of host "+t.record.Name)
	steps = append(steps, t.ask("let host %s go", t.record.Name)...)
	return t.change(p, c, f, of, steps, func(ctx context.Context) (string, error) {
		for _, v := range here {
			if err := t.Detach(ctx, v.Name); err != nil {
				return "", err
			}
		}
		if err := t.Stop(ctx); err != nil {
			return "", err
		}
		return "has left the cluster", t.Leave(ctx)
	})
}

// drainable refuses what draining a host that has these volumes would fail at.
func (t *thinMember) drainable(ctx context.Context, here []layout.VolumeRecord) error {
	for _, v := range here {
		if err := t.Labels.Labelled(v.Name); err != nil {
			return err
		}
	}
	_, err := t.Stoppable(ctx)
	return err
}

// thinDrained is thinDrain on a host that has left. One that was fenced, and is not
// recovered, has not: refused is what it is told.
func thinDrained(p *program, c *cli.Context, refused error) error {
	_, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	m, err := t.readMap(c.Context)
	if err != nil {
		return err
	}
	name, err := t.ThisHost()
	if err != nil {
		return err
	}
	if h, err := cluster.Host(m, name); err != nil || h.State != layout.Recovered {
		return refused
	}
	return thinStop(p, c)
}

// thinMonitor works until it is stopped, which is its end and no failure.
func thinMonitor(p *program, c *cli.Context) error {
	_, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	if c.Bool("master") {
		return t.master().Serve(c.Context, master.Pace{})
	}
	m, err := t.standIn(c.Context)
	if err != nil {
		return err
	}
	w := member.Watch{Quantum: cluster.Quantum(m.known)}
	if text := c.String("quantum"); text != "" {
		if w.Quantum, err = m.blocks(text); err != nil {
			return err
		}
	}
	m.LowWater = w.Quantum
	return m.Monitor(c.Context, w)
}
