// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/hooks/domains"
	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/quorum"
)

func quorumCommand(p *program) *cli.Command {
	verb := p.verb
	return &cli.Command{
		Name: "quorum", Usage: "disks of several replicas that vote (replica sets)",
		Subcommands: []*cli.Command{
			verb("build", "make a set: its replicas are filled from an image, or with zeros", "NAME", quorumBuild, buildFlags()...),
			verb("list", "list the sets of this host", "", quorumList),
			verb("status", "show who votes, who is suspect and since when", "[NAME]", quorumStatus),
			verb("verify", "compare all replicas, and a disk with them; exit 8 if they differ", "NAME", quorumVerify,
				&cli.StringFlag{Name: "against", Usage: "compare this `IMAGE` as well; if the set holds what it holds, the set may take its place"},
				&cli.StringFlag{Name: "against-format", Usage: "`FORMAT` of that image: raw or qcow2 (default: by its name, else raw)"},
				dryRunFlag()),
			verb("resync", "make all replicas equal: to the majority, or to the one you name", "NAME", quorumResync,
				&cli.StringFlag{Name: "from", Usage: "believe this replica `ID` instead of the majority"}, dryRunFlag()),
			verb("replace", "take a replica out and build another from the majority", "NAME ID REPLICA", quorumReplace,
				replicaFormatFlag(), overwriteFlag(), dryRunFlag()),
			verb("remove", "take a set's definition and marks away", "NAME", quorumRemove,
				&cli.BoolFlag{Name: "delete-images", Usage: "delete the images of all replicas as well"}, connectFlag(), dryRunFlag()),
			verb("forget", "give up what a guest wrote to a set, so that its VM may start without it", "DOMAIN DISK", quorumForget,
				&cli.BoolFlag{Name: "discard-guest-data", Usage: "your word that what the guest wrote is given up"}, connectFlag(), dryRunFlag()),
			verb("accept", "let a set as it is be the disk of a VM, whatever that disk held", "NAME DOMAIN DISK", quorumAccept,
				&cli.BoolFlag{Name: "discard-disk-data", Usage: "your word that what the disk itself holds is given up"}, connectFlag(), dryRunFlag()),
			{
				Name: "serve", Usage: "serve a set to its guest (started by diskhook itself)", ArgsUsage: "NAME", Hidden: true,
				Action: func(c *cli.Context) error { return quorumServe(p, c) },
			},
		},
	}
}

func replicaFormatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "image `FORMAT` of replicas: raw or qcow2 (default: by the file's name, else raw)"}
}

func overwriteFlag() cli.Flag {
	return &cli.BoolFlag{Name: "overwrite", Usage: "write over images that exist, and over what is on a device"}
}

// quorumFlag is --bind DISK:quorum=SET in short.
func quorumFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "quorum", Aliases: []string{"q"},
		Usage: "make a disk a replica set: `DISK`=SET[,lower=export|inline|none,transport=nbd|vhost-user] (repeatable)"}
}

func (p *program) quorumService(config host.Config, log *slog.Logger) (*quorum.Service, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find diskhook itself: %w", err)
	}
	return &quorum.Service{
		Layout: p.layout, Config: config, Run: command.System{Log: log}, Log: log,
		Program: pathOf("DISKHOOK_PROGRAM", self),
	}, nil
}

// quorumServe is the main process of a set's unit. Nobody reads its output.
func quorumServe(p *program, c *cli.Context) error {
	words, err := operands(c, "NAME")
	if err != nil {
		return err
	}
	log, closeLog := hookLog(p.layout)
	defer closeLog()
	config, err := host.Load(p.layout)
	if err != nil {
		log.Warn("configuration", "err", err) // as the hook that started us did
	}
	s, err := p.quorumService(config, log)
	if err != nil {
		return err
	}
	libvirt := &domains.Client{Run: s.Run, Program: pathOf("DISKHOOK_DOMAIN_PROGRAM", domainProgram), URI: p.uri(c)}
	s.Resumer = resumer{s, libvirt, log}
	s.Watcher = domains.QuorumWatcher{Libvirt: libvirt, Log: log}
	return s.Serve(c.Context, words[0])
}

// resumer lets the guest of a set go on that was stopped while nothing served
// it. A domain of oVirt's goes on as well: VDSM takes it for an operator's word.
type resumer struct {
	sets    *quorum.Service
	libvirt *domains.Client
	log     *slog.Logger
}

// Resume asks as long as ctx lets it, ever less often: QEMU may find out that its
// server was away only after that is back, and a guest that was resumed may be
// paused again by a request that met the old connection. The first time it
// waits while libvirt is busy with a start, whose hook started us.
func (r resumer) Resume(ctx context.Context, set string) error {
	use, err := r.sets.Claim(set)
	if err != nil || r.libvirt.URI == "" {
		return err
	}
	for wait := time.Second; ; wait *= 2 {
		answer, err := r.libvirt.ResumeIO(ctx, use.Domain, use.Target)
		r.log.Info("guest of the set", "set", set, "domain", use.Domain, "resumed", answer.Resumed, "state", answer.State, "why", answer.Why, "err", err)
		if answer.Resumed {
			wait = time.Second / 2 // its first request may still meet the old connection
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// setArgs is what every verb on one set begins with.
func setArgs(p *program, c *cli.Context, more ...string) (format, *services, quorum.Set, []string, error) {
	f, s, words, err := verbArgs(p, c, append([]string{"NAME"}, more...)...)
	if err != nil {
		return f, nil, quorum.Set{}, nil, err
	}
	set, err := s.quorum.Load(words[0])
	return f, s, set, words, err
}

// elements binds disks whose element names replicas.
func (s *services) elements(c *cli.Context, d bindings.Domain, written []bindings.Binding) ([]bindings.Binding, error) {
	if !slices.ContainsFunc(d.Disks, func(disk bindings.Disk) bool { return disk.Type == "quorum" }) {
		return nil, nil
	}
	sets, err := s.quorum.List(c.Context)
	if err != nil {
		s.log.Warn("replica sets", "err", err)
	}
	return bindings.FromElements(d, sets, written)
}
