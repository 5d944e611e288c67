// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed"
)

func volumeCommand(p *program) *cli.Command {
	verb := func(name, usage, args string, act func(*program, *cli.Context) error, flags ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: args, Flags: append(flags, outputFlag()),
			Action: func(c *cli.Context) error { return act(p, c) },
		}
	}
	domain := func() cli.Flag {
		return &cli.StringFlag{Name: "domain", Usage: "on behalf of this `DOMAIN` (its UUID, or its name), which has the volume to itself"}
	}
	return &cli.Command{
		Name: "volume", Usage: "volumes that a storage management provides (Cinder's connection_info)",
		Subcommands: []*cli.Command{
			verb("define", "make a volume known to this host", "ID", volumeDefine,
				&cli.StringFlag{Name: "connection-info", Usage: "read how it is reached from `FILE` (- is standard input): Cinder's connection_info, where KEY_file may name a file with the secret of KEY"}, dryRunFlag()),
			verb("undefine", "forget a volume", "ID", volumeUndefine, dryRunFlag()),
			verb("list", "list volumes that are defined or attached, and what is wrong with them", "", volumeList),
			verb("attach", "connect a volume, and link its device below /run/diskhook/volumes", "ID", volumeAttach, domain(), connectFlag(), dryRunFlag()),
			verb("detach", "take a volume away from this host", "ID", volumeDetach, domain(), connectFlag(), dryRunFlag()),
			verb("rescan", "have the host see that the storage has enlarged an attached volume", "ID", volumeRescan),
			verb("which", "show which managed volume a device is, or a partition, path or map of", "DEVICE", volumeWhich),
			verb("info", "show connection, device and attachment of volumes, as VDSM's volumes_info", "[ID...]", volumeInfo),
			verb("connector", "show what the storage has to know of this host before it can show it a volume", "", volumeConnector),
			verb("devices", "list block and multipath devices that are no managed volumes", "", volumeDevices),
			verb("reconcile", "compare database, links and kernel, and say what has to be done", "", volumeReconcile,
				&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do it"}, connectFlag(), dryRunFlag()),
			{
				Name: "helper", Usage: "VDSM's managedvolume-helper (called by VDSM)", ArgsUsage: "connector_info|attach|detach", Hidden: true,
				Action: func(c *cli.Context) error { return volumeHelper(p, c) },
			},
		},
	}
}

// volumeFlag is --bind DISK:volume=ID in short.
func volumeFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "volume", Usage: "make a disk a managed volume that is defined on this host: `DISK`=ID (repeatable)"}
}

func (p *program) volumeService(config host.Config, log *slog.Logger) (*managed.Service, error) {
	s := managed.New(p.layout, config.Managed, log)
	if p.storage == nil {
		return s, nil
	}
	return s, p.storage(s)
}

// coded adds the number by which VDSM's users know what happened.
func coded(err error) error {
	if code := managed.CodeOf(err); code != nil && code != managed.HelperFailed {
		return fmt.Errorf("%w (%d %s)", err, code.Number, code.Name)
	}
	return err
}

func volumeDefine(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "ID")
	if err != nil {
		return err
	}
	connection, err := p.connectionInfo(c)
	if err != nil {
		return err
	}
	steps, err := s.volumes.ExplainDefine(c.Context, words[0], connection)
	if err != nil {
		return coded(err)
	}
	return p.change(f, c.Bool("dry-run"), managedVolume(words[0]), steps, func() (string, error) {
		return "defined", coded(s.volumes.Define(c.Context, words[0], connection))
	})
}

// mostConnection is more than storage/managed takes.
const mostConnection = 1 << 20

// connectionInfo reads the document. No part of it is ever in an error.
func (p *program) connectionInfo(c *cli.Context) ([]byte, error) {
	name, in := c.String("connection-info"), p.stdin
	switch name {
	case "":
		return nil, see(c, failure.New(failure.Usage, "--connection-info is missing: how the volume is reached"))
	case "-":
	default:
		file, err := os.Open(name)
		if err != nil {
			return nil, failure.Wrap(failure.NotFound, err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, mostConnection))
	if err != nil {
		return nil, fmt.Errorf("read the connection_info: %w", err)
	}
	return text, nil
}

func volumeUndefine(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "ID")
	if err != nil {
		return err
	}
	steps, err := s.volumes.ExplainUndefine(c.Context, words[0])
	if err != nil {
		return err
	}
	return p.change(f, c.Bool("dry-run"), managedVolume(words[0]), steps, func() (string, error) {
		return "forgotten", coded(s.volumes.Undefine(c.Context, words[0]))
	})
}

func volumeAttach(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "ID")
	if err != nil {
		return err
	}
	r := managed.Request{ID: words[0]}
	if r.Domain, err = s.claimant(c); err != nil {
		return err
	}
	steps, err := s.volumes.ExplainAttach(c.Context, r)
	// Without a domain there is nothing more to do; VDSM's users get an error.
	if errors.Is(err, managed.AlreadyAttached) {
		steps, err = nil, nil
	}
	if err != nil {
		return coded(err)
	}
	var attached managed.Attached
	volume := managedVolume(r.ID)
	volume.result = func() any { return attached.Masked() }
	return p.change(f, c.Bool("dry-run"), volume, steps, func() (string, error) {
		attached, err = s.volumes.Attach(c.Context, r)
		return "attached as " + attached.ManagedPath, coded(err)
	})
}

func volumeDetach(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "ID")
	if err != nil {
		return err
	}
	domain, err := s.claimant(c)
	if err != nil {
		return err
	}
	steps, err := s.volumes.ExplainDetach(c.Context, words[0], domain)
	if err != nil {
		return coded(err)
	}
	return p.change(f, c.Bool("dry-run"), managedVolume(words[0]), steps, func() (string, error) {
		return "detached", coded(s.volumes.Detach(c.Context, words[0], domain))
	})
}

// claimant is the UUID of the domain that --domain names, or "". One that is
// gone has only its UUID left.
func (s *services) claimant(c *cli.Context) (string, error) {
	if !c.IsSet("domain") {
		return "", nil
	}
	return s.uuidOf(c.Context, c.String("domain"))
}

func (s *services) uuidOf(ctx context.Context, name string) (string, error) {
	if id := strings.ToLower(name); host.IsUUID(id) {
		return id, nil
	}
	facts, err := s.domains.Libvirt.Facts(ctx, name)
	return facts.UUID, failure.Hint(err, "name the domain by its UUID")
}
