// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/ledger"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/membership"
)

func thinMasterVerbs(p *program) []*cli.Command {
	return []*cli.Command{
		p.thinVerb("grant", "give a host space that it did not ask for (on the master)", "HOST SIZE", thinGrant, dryRunFlag()),
		p.thinVerb("grow", "have the cluster use a data volume that is longer than before (on the master)", "", thinGrow,
			&cli.StringFlag{Name: "size", Aliases: []string{"s"}, Usage: "extend it first, to `SIZE`"}, dryRunFlag()),
		p.thinVerb("gc", "free what no volume has any more (on the master)", "", thinCollect, dryRunFlag()),
		p.thinVerb("recover", "take the volumes of a fenced host back (on the master)", "HOST", thinRecover,
			&cli.BoolFlag{Name: "repair", Usage: "also from damaged metadata; what comes from them is suspect"}, dryRunFlag()),
		p.thinVerb("remove-host", "forget a host that was recovered or has left (on the master)", "HOST", thinRemoveHost, dryRunFlag()),
	}
}

// masterArgs is what a verb of the master begins with, with the map. What it would
// refuse elsewhere is refused in a dry run, too.
func masterArgs(p *program, c *cli.Context, names ...string) (format, *thinCluster, *master.Master, layout.Map, []string, error) {
	f, t, words, err := thinArgs(p, c, names...)
	if err != nil {
		return f, nil, nil, layout.Map{}, nil, err
	}
	m := t.master()
	standing, err := t.standing(c.Context)
	if err == nil {
		err = t.reigning(standing)
	}
	if err != nil {
		return f, nil, nil, layout.Map{}, nil, err
	}
	known, err := t.readMap(c.Context)
	return f, t, m, known, words, err
}

// reigning refuses a host that is not the master.
func (t *thinCluster) reigning(s membership.Standing) error {
	if s.Master {
		return nil
	}
	err := failure.New(failure.Conflict, "cluster %s: this host is not its master, which is of epoch %d", t.Name, s.Epoch)
	return failure.Hint(err, "run it on the master; if there is none, nominate this host with `diskhook thin on-master --epoch %d`", s.Epoch+1)
}

func thinGrant(p *program, c *cli.Context) error {
	f, _, m, known, words, err := masterArgs(p, c, "HOST", "SIZE")
	if err != nil {
		return err
	}
	h, err := cluster.Member(known, words[0])
	if err != nil {
		return err
	}
	n, err := host.ParseSize(words[1])
	if err == nil && n <= 0 {
		err = failure.New(failure.Usage, "size %q: it is not positive", words[1])
	}
	if err != nil {
		return err
	}
	blocks := cluster.BlocksFor(known, uint64(n))
	if _, _, err := ledger.Grant(known, h.Number, blocks); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	steps := []string{fmt.Sprintf("# give host %s %d blocks of %d bytes", h.Name, blocks, known.BlockSize)}
	return p.change(f, c.Bool("dry-run"), thinHost(h.Name), steps, func() (string, error) {
		return size(int64(blocks*known.BlockSize)) + " granted, which it has after `diskhook thin use`", m.Grant(c.Context, h.Name, blocks)
	})
}

func thinGrow(p *program, c *cli.Context) error {
	f, t, m, _, _, err := masterArgs(p, c)
	if err != nil {
		return err
	}
	bytes, err := sizeFlag(c, "size")
	if err != nil {
		return err
	}
	growth, err := m.Growth(c.Context, bytes)
	if err != nil {
		return err
	}
	if growth.None {
		return p.change(f, c.Bool("dry-run"), thinClusterNamed(t.Name), nil, nil)
	}
	var steps []string
	if bytes > 0 {
		steps = append(steps, fmt.Sprintf("# extend %s to %d bytes", t.group.Path(layout.DataName), bytes))
	}
	if len(growth.Waiting) > 0 {
		steps = append(steps, "# which takes `diskhook thin rebuild` first, on "+strings.Join(growth.Waiting, ", "))
	}
	steps = append(steps, "# add to the map the blocks that "+t.group.Path(layout.DataName)+" has beyond it")
	return p.change(f, c.Bool("dry-run"), thinClusterNamed(t.Name), steps, func() (string, error) {
		g, err := m.Grow(c.Context, bytes)
		return fmt.Sprintf("%d blocks, %s", g.Blocks, size(int64(g.Bytes()))), err
	})
}

func thinCollect(p *program, c *cli.Context) error {
	f, t, m, known, _, err := masterArgs(p, c)
	if err != nil {
		return err
	}
	steps := []string{"# free the shared blocks of cluster " + t.Name + " that no volume maps any more"}
	if c.Bool("dry-run") {
		switch some, err := m.Collectable(c.Context); {
		case err != nil:
			return err
		case !some:
			steps = nil
		}
	}
	of := thinClusterNamed(t.Name)
	var gone master.Collected
	of.result = func() any { return gone }
	return p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) {
		gone, err = m.Collect(c.Context)
		text := size(int64(gone.Blocks*known.BlockSize)) + " freed"
		if len(gone.Volumes) > 0 {
			text += "; removed, as nobody refers to them: " + strings.Join(gone.Volumes, ", ")
		}
		return text, err
	})
}

func thinRecover(p *program, c *cli.Context) error {
	f, t, m, known, words, err := masterArgs(p, c, "HOST")
	if err != nil {
		return err
	}
	h, err := cluster.Host(known, words[0])
	if err != nil {
		return err
	}
	var steps []string
	if h.State != layout.Recovered {
		for _, v := range known.Volumes {
			if v.Host == h.Number && v.State.On() {
				steps = append(steps, fmt.Sprintf("# take volume %s offline, with what the metadata of host %s map", v.Name, h.Name))
			}
		}
		steps = append(steps, "# take the other blocks of host "+h.Name+" back")
	}
	if h.State == layout.Member {
		err := failure.New(failure.Precondition, "host %s: it is not fenced", h.Name)
		return failure.Hint(err, "have it fenced, then run `diskhook thin on-fenced %s` with the evidence", h.Name)
	}
	if h.State == layout.Fenced {
		if err := t.hasStopped(c.Context, h.Name); err != nil {
			return err
		}
	}
	of := thinHost(h.Name)
	all := []master.Recovered{}
	of.result = func() any { return all }
	return p.change(f, c.Bool("dry-run"), of, steps, func() (string, error) {
		recovered, err := m.Recover(c.Context, h.Name, c.Bool("repair"))
		all = append(all, recovered...)
		text := fmt.Sprintf("recovered, %d volumes are offline", len(all))
		for _, v := range all {
			if v.Suspect {
				text += fmt.Sprintf("; %s is suspect: it is from %s", v.Name, v.Source)
			}
		}
		return text, err
	})
}

// hasStopped refuses this host as long as anything of its pool is here, whatever the
// evidence is: its guests would write to what is given to others.
func (t *thinCluster) hasStopped(ctx context.Context, host string) error {
	name, err := t.ThisHost()
	if err != nil || name != host {
		return err
	}
	here, err := t.local()
	if err != nil {
		return err
	}
	switch is, err := here.Stoppable(ctx); {
	case is: // whether or not it could be stopped now
		err := failure.New(failure.Conflict, "host %s: it is this one, and its pool of cluster %s runs", name, t.Name)
		return failure.Hint(err, "stop its guests and run `diskhook thin stop`, then `diskhook thin recover %s` again", name)
	default:
		return err
	}
}

func thinRemoveHost(p *program, c *cli.Context) error {
	f, t, m, known, words, err := masterArgs(p, c, "HOST")
	if err != nil {
		return err
	}
	h, err := cluster.Host(known, words[0])
	if errors.Is(err, failure.NotFound) {
		return p.change(f, c.Bool("dry-run"), thinHost(words[0]), nil, nil)
	}
	if err != nil {
		return err
	}
	if h.State == layout.Member {
		err := failure.New(failure.Conflict, "host %s: it is a member of cluster %s", h.Name, t.Name)
		return failure.Hint(err, "run `diskhook thin drain` on it; or, once it is fenced, `diskhook thin recover %s`", h.Name)
	}
	if _, err := ledger.Forget(known, h.Number); err != nil {
		return err
	}
	steps := []string{fmt.Sprintf("# remove %s, and host %s from the map", layout.Host.Name(h.UUID), h.Name)}
	return p.change(f, c.Bool("dry-run"), thinHost(h.Name), steps, func() (string, error) {
		return "forgotten", m.RemoveHost(context.WithoutCancel(c.Context), h.Name)
	})
}
