// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/hooks/libvirt"
	"diskhook/hooks/privileged"
	"diskhook/hooks/vdsm"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

func hookCommand(p *program) *cli.Command {
	return &cli.Command{
		Name: "hook", Usage: "what libvirt and VDSM call, and how to try it",
		Subcommands: []*cli.Command{
			{
				// Never reached: run takes it before anything is parsed.
				Name: "run", Usage: "do the work of a hook (called by qemu-hook)",
				ArgsUsage: "-- libvirt NAME OP SUBOP EXTRA <XML | -- vdsm POINT",
				Action: func(c *cli.Context) error {
					return see(c, failure.New(failure.Usage, "hook run: not the words of a hook"))
				},
			},
			{
				Name: "simulate", Usage: "show what a hook would do with a domain; do nothing",
				ArgsUsage: "[FILE]",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "op", Value: "prepare", Usage: "`OPERATION` of libvirt (prepare, start, release, migrate, restore, reconnect) or hook point of VDSM"},
					bindFlag(), outputFlag(),
				},
				Action: func(c *cli.Context) error { return hookSimulate(p, c) },
			},
		},
	}
}

// call is one call of a hook.
type call struct {
	libvirt *libvirt.Call
	vdsm    *vdsm.Call
}

// hookCall recognises the words with which qemu-hook starts this program. They
// are taken before any option is looked for: a domain's name may be -rf.
func hookCall(args []string) (call, bool) {
	if len(args) < 5 || args[1] != "hook" || args[2] != "run" || args[3] != "--" {
		return call{}, false
	}
	switch words := args[4:]; {
	case words[0] == "libvirt" && len(words) == 5:
		return call{libvirt: &libvirt.Call{Domain: words[1], Op: words[2], SubOp: words[3], Extra: words[4]}}, true
	case words[0] == "vdsm" && len(words) == 2:
		return call{vdsm: &vdsm.Call{Point: words[1], Lookup: os.LookupEnv}}, true
	}
	return call{}, false
}

// Exit codes of hooks. libvirt takes any other than 0 as a veto; VDSM takes 1
// as a warning and 2 as a veto.
const (
	libvirtVeto = 1
	vdsmVeto    = 2
)

// runHook does a hook's work. What went wrong is one line, the last on
// standard error, since libvirt shows it to the operator.
func (p *program) runHook(ctx context.Context, c call) (code int) {
	veto := libvirtVeto
	if c.vdsm != nil {
		veto = vdsmVeto
	}
	defer func() {
		if bug := recover(); bug != nil {
			fmt.Fprintf(p.stderr, "diskhook: a bug: %s; see the journal, and report it\n", failure.OneLine(fmt.Sprint(bug)))
			code = veto
		}
	}()
	if err := p.hook(ctx, c); err != nil {
		fmt.Fprintf(p.stderr, "diskhook: %s\n", failure.Line(err))
		return veto
	}
	return exitOK
}

func (p *program) hook(ctx context.Context, c call) error {
	log, closeLog := hookLog(p.layout)
	defer closeLog()
	config, err := host.Load(p.layout)
	if err != nil {
		log.Warn("configuration", "err", err)
	}
	h := &bindings.Host{Layout: p.layout, Config: config, Log: log}
	if os.Geteuid() == 0 || p.layout.Root != "" {
		local, err := p.localService(config, log)
		if err != nil {
			return err
		}
		sets, err := p.quorumService(config, log)
		if err != nil {
			return err
		}
		volumes, err := p.volumeService(config, log)
		if err != nil {
			return err
		}
		h.Local, h.Quorum, h.Reader = bindings.Direct(local), bindings.DirectQuorum(sets), local.User
		h.Volumes, h.ConnectorInfo = volumes, volumes.ConnectorInfo
		h.Images, h.Thin = p.images(config, log), thinDisks{p, config, log}
	} else {
		helper := privileged.NewClient(command.System{Log: log}, p.layout, config)
		h.Local, h.Quorum, h.Volumes, h.ConnectorInfo = helper, helper.Quorum(), helper.Volumes(), helper.ConnectorInfo
	}
	if c.vdsm != nil {
		return vdsm.Run(ctx, h, *c.vdsm)
	}
	if c.libvirt.Stdin, err = p.readXML("-"); err != nil {
		return fmt.Errorf("domain %s: %w", failure.OneLine(c.libvirt.Domain), err)
	}
	stdout, err := libvirt.Run(ctx, h, *c.libvirt)
	if err != nil {
		return err
	}
	_, err = p.stdout.Write(stdout)
	return err
}

func hookSimulate(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	file, s, written, err := fileArgs(p, c)
	if err != nil {
		return err
	}
	xml, err := p.readXML(file)
	if err != nil {
		return err
	}
	plan, err := bindings.Simulate(c.Context, s.host, c.String("op"), xml, written)
	if err != nil {
		return err
	}
	return p.printSimulation(f, plan)
}

func (p *program) printSimulation(f format, plan *bindings.Plan) error {
	switch f {
	case inJSON:
		veto := ""
		if plan.Veto != nil {
			veto = failure.Line(plan.Veto)
		}
		if err := p.printJSON(struct {
			Schema string `json:"schema"`
			*bindings.Plan
			Veto string `json:"veto"`
		}{"diskhook.simulation/v1", plan, veto}); err != nil {
			return err
		}
	case asNames:
		for _, s := range plan.Steps {
			fmt.Fprintln(p.stdout, harmless(s.Target))
		}
	default:
		if _, err := fmt.Fprint(p.stdout, plan.String()); err != nil {
			return err
		}
	}
	return plan.Veto
}
