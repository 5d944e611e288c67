// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/thin/membership"
)

// The verbs that a membership service calls (package membership), and what runs one.
func thinMembershipVerbs(p *program) []*cli.Command {
	return []*cli.Command{
		p.thinVerb("on-join", "take part: start this host's pool and what keeps it in free blocks", "", thinOnJoin, dryRunFlag()),
		p.thinVerb("on-leave", "take part no more: end both, as far as volumes are not in use", "", thinOnLeave, dryRunFlag()),
		p.thinVerb("on-master", "make this host the master", "", thinOnMaster, epochFlag("default: the one after the disk's"), dryRunFlag()),
		p.thinVerb("on-demoted", "act as the master no more", "", thinOnDemoted, dryRunFlag()),
		thinFencedVerb(p),
		p.thinVerb("membership", "show who is the master, or take the membership from an engine: etcd", "[ENGINE]", thinMembership),
	}
}

func epochFlag(otherwise string) cli.Flag {
	return &cli.Uint64Flag{Name: "epoch", Usage: "`EPOCH` of the master (" + otherwise + ")"}
}

// The units that membership starts and ends.
func (t *thinCluster) monitorUnit() string { return "diskhook-thin-monitor@" + t.Name + ".service" }
func (t *thinCluster) masterUnit() string  { return "diskhook-thin-master@" + t.Name + ".service" }

// unitTimeout is for a stop too, which lets a unit finish.
const unitTimeout = 5 * time.Minute

func systemctl(verb string, units ...string) command.Cmd {
	return command.Cmd{Name: "systemctl", Args: append([]string{verb, "--"}, units...), Timeout: unitTimeout}
}

func (t *thinCluster) run(ctx context.Context, cmd command.Cmd) error {
	_, err := command.System{Log: t.log}.Run(ctx, cmd)
	return err
}

// runs says whether a unit is active: systemctl(1), is-active. What cannot be asked
// is not known to be.
func (t *thinCluster) runs(ctx context.Context, unit string) bool {
	return t.run(ctx, command.Cmd{Name: "systemctl", Args: []string{"is-active", "--quiet", "--", unit}, Timeout: unitTimeout}) == nil
}

// stops are the steps that end those of the units that are active.
func (t *thinCluster) stops(ctx context.Context, units ...string) []string {
	units = slices.DeleteFunc(units, func(unit string) bool { return !t.runs(ctx, unit) })
	if len(units) == 0 {
		return nil
	}
	return []string{systemctl("stop", units...).String()}
}

func thinOnJoin(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	m, err := t.member(c.Context)
	if err != nil {
		return err
	}
	start := systemctl("start", t.monitorUnit())
	const pool = "start the pool of this host"
	steps := []string{pool, start.String()}
	if c.Bool("dry-run") {
		started, err := m.Started(c.Context)
		if err != nil {
			return err
		}
		active := t.runs(c.Context, t.monitorUnit())
		steps = slices.DeleteFunc(steps, func(step string) bool { return step == pool && started || step != pool && active })
	}
	return p.change(f, c.Bool("dry-run"), thinClusterNamed(t.Name), steps, func() (string, error) {
		if err := m.Start(c.Context); err != nil {
			return "", err
		}
		return "this host takes part", t.run(c.Context, start)
	})
}

func thinOnLeave(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	here, err := t.local()
	if err != nil {
		return err
	}
	stop := systemctl("stop", t.masterUnit(), t.monitorUnit())
	const pool = "stop the pool of this host unless a volume is in use"
	steps := []string{stop.String(), pool}
	if c.Bool("dry-run") {
		steps = t.stops(c.Context, t.masterUnit(), t.monitorUnit())
		// That it may not be stopped now is no failure of this verb.
		if is, _ := here.Stoppable(c.Context); is {
			steps = append(steps, pool)
		}
	}
	return p.change(f, c.Bool("dry-run"), thinClusterNamed(t.Name), steps, func() (string, error) {
		if err := t.resign(c.Context, stop); err != nil {
			return "", err
		}
		err := here.Stop(c.Context) // by what the kernel has: it may be no member any more
		switch {
		case errors.Is(err, failure.Conflict):
			return "this host asks for nothing any more, and its pool runs on: " + failure.Line(err), nil
		case errors.Is(err, failure.Precondition): // no device-mapper
			return "this host has no pool here: " + failure.Line(err), nil
		}
		return "this host takes part no more", err
	})
}

func thinOnMaster(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	if c.IsSet("epoch") && c.Uint64("epoch") == 0 {
		return see(c, failure.New(failure.Usage, "--epoch 0: epochs begin with 1"))
	}
	m := t.master()
	standing, err := t.standing(c.Context)
	if err != nil {
		return err
	}
	epoch := c.Uint64("epoch")
	if epoch == 0 {
		epoch = standing.Epoch + 1
	}
	start := systemctl("start", t.masterUnit())
	return p.change(f, c.Bool("dry-run"), thinClusterNamed(t.Name), []string{"claim epoch " + strconv.FormatUint(epoch, 10), start.String()}, func() (string, error) {
		if epoch, err = m.Claim(c.Context, epoch); err != nil {
			return "", err
		}
		if err := t.run(c.Context, start); err != nil {
			// Whoever called takes this host for no master; the unit may still come up.
			return "", errors.Join(err, t.stepDown(context.WithoutCancel(c.Context)))
		}
		return "this host is the master in epoch " + strconv.FormatUint(epoch, 10), nil
	})
}

func thinOnDemoted(p *program, c *cli.Context) error {
	f, t, _, err := thinArgs(p, c)
	if err != nil {
		return err
	}
	steps := []string{"give the mastership up", systemctl("stop", t.masterUnit()).String()}
	return p.change(f, c.Bool("dry-run"), thinClusterNamed(t.Name), steps, func() (string, error) {
		return "this host does not act as the master", t.stepDown(c.Context)
	})
}

// stepDown ends what this host does as the master, verbs of an operator too.
func (t *thinCluster) stepDown(ctx context.Context) error {
	err := t.resign(ctx, systemctl("stop", t.masterUnit()))
	t.master().Release(ctx) // also after a unit that was killed
	return err
}

// resign gives the mastership up and ends the unit. The mastership first: that takes a
// moment, and nothing is begun after it, while a unit may take minutes to stop, and an
// engine has less patience than that with this verb. Only where a change under way
// keeps it waiting the unit is told meanwhile.
func (t *thinCluster) resign(ctx context.Context, stop command.Cmd) error {
	soon, cancel := context.WithTimeout(ctx, resignSoon)
	defer cancel()
	early := t.master().Resign(soon)
	err := t.run(ctx, stop)
	if early != nil {
		err = errors.Join(err, t.master().Resign(ctx))
	}
	return err
}

const resignSoon = 5 * time.Second

func thinMembership(p *program, c *cli.Context) error {
	f, t, words, err := thinArgs(p, c, "[ENGINE]")
	if err != nil {
		return err
	}
	switch words[0] {
	case "":
	case "etcd":
		path := pathOf("DISKHOOK_ETCD_PROGRAM", etcdProgram)
		err := syscall.Exec(path, []string{"diskhook-etcd", t.Name}, os.Environ())
		return failure.New(failure.Precondition, "%s: %w", path, err)
	default:
		err := failure.New(failure.Usage, "%q: there is no such engine", words[0])
		return failure.Hint(err, "etcd; pacemaker and sanlock call diskhook by themselves, and an operator calls `diskhook thin on-master` and `diskhook thin on-fenced HOST`")
	}
	s, err := t.standing(c.Context)
	if err != nil {
		return err
	}
	if f == inJSON {
		return p.printJSON(s)
	}
	return p.print(f, listing{
		header: []string{"CLUSTER", "HOST", "EPOCH", "MASTER"}, names: []string{t.Name},
		rows: [][]string{{s.Cluster, s.Host, strconv.FormatUint(s.Epoch, 10), strconv.FormatBool(s.Master)}},
	})
}

// standing is where this host stands, by what is on the disk.
func (t *thinCluster) standing(ctx context.Context) (membership.Standing, error) {
	s := membership.Standing{Cluster: t.Name}
	var err error
	if s.Host, err = t.ThisHost(); err != nil {
		return s, err
	}
	s.Epoch, s.Master, err = t.master().Reigns(ctx)
	return s, err
}
