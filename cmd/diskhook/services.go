// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/hooks/domains"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
	"diskhook/storage/managed"
	"diskhook/storage/quorum"
)

// services are the packages that verbs call, set up for this host.
type services struct {
	config  host.Config
	log     *slog.Logger
	local   *localdisk.Service
	quorum  *quorum.Service
	volumes *managed.Service
	host    *bindings.Host
	domains *domains.Service
}

// services needs a configuration that is right: a verb with a wrong one would
// work on something else than the operator thinks.
func (p *program) services(c *cli.Context) (*services, error) {
	config, err := p.config()
	if err != nil {
		return nil, err
	}
	log := p.logger()
	local, err := p.localService(config, log)
	if err != nil {
		return nil, err
	}
	sets, err := p.quorumService(config, log)
	if err != nil {
		return nil, err
	}
	volumes, err := p.volumeService(config, log)
	if err != nil {
		return nil, err
	}
	h := &bindings.Host{
		Layout: p.layout, Config: config, Log: log, Reader: local.User,
		Local: bindings.Direct(local), Quorum: bindings.DirectQuorum(sets), Volumes: volumes,
		Images: p.images(config, log), Thin: thinDisks{p, config, log},
	}
	client := &domains.Client{Run: command.System{Log: log}, Program: pathOf("DISKHOOK_DOMAIN_PROGRAM", domainProgram), URI: p.uri(c)}
	return &services{config, log, local, sets, volumes, h, &domains.Service{Libvirt: client, Host: h, Local: local, Quorum: sets}}, nil
}

func (p *program) localService(config host.Config, log *slog.Logger) (*localdisk.Service, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find diskhook itself: %w", err)
	}
	reader, owner, err := localdisk.OVirtIdentities(p.layout)
	if err != nil && !errors.Is(err, localdisk.ErrNotOVirt) {
		return nil, err
	}
	return &localdisk.Service{
		Layout: p.layout, Config: config, Run: command.System{Log: log}, Log: log,
		Program: pathOf("DISKHOOK_PROGRAM", self), User: reader, Owner: owner,
		Images: bindings.ImagesOf(p.images(config, log)), Thin: thinDisks{p, config, log},
	}, nil
}

// images opens the storage repositories for who has a disk in one.
func (p *program) images(config host.Config, log *slog.Logger) func() (bindings.Images, error) {
	return func() (bindings.Images, error) { return p.repositoryService(config, log) }
}

// Flags that several nouns have.
func connectFlag() cli.Flag {
	return &cli.StringFlag{Name: "connect", Aliases: []string{"c"}, EnvVars: []string{"LIBVIRT_DEFAULT_URI"},
		Usage: "libvirt connection `URI` (default: qemu:///system)"}
}

func xmlFlag() cli.Flag {
	return &cli.StringFlag{Name: "xml", Usage: "read the domain from `FILE` (- is standard input) instead of asking libvirt"}
}

// uri is the libvirt to talk to. A moved root is for tests, demo and work
// without root, and must not reach the host's own domains unless told so.
func (p *program) uri(c *cli.Context) string {
	if uri := c.String("connect"); uri != "" {
		return uri
	}
	if p.layout.Root != "" {
		return ""
	}
	return domains.HostURI
}

// domainID turns a domain's name or UUID into its UUID: by libvirt, else by
// the receipts of this host, which is all there is of a VM of oVirt that does
// not run, else by what local list shows: a copy that is unfinished has none. It is for verbs on copies, which need no definition.
func (s *services) domainID(ctx context.Context, name string) (string, error) {
	if id, err := uuid.Parse(name); err == nil {
		return id.String(), nil
	}
	facts, err := s.domains.Libvirt.Facts(ctx, name)
	if err == nil {
		return facts.UUID, nil
	}
	s.log.Info("libvirt does not know the domain", "err", err)
	receipts, err := localdisk.Receipts(s.local.Layout, "")
	if err != nil {
		s.log.Warn("receipts of some domain", "err", err) // another's must not be in the way
	}
	ids := map[string]bool{}
	for _, r := range receipts {
		if r.DomainName == name {
			ids[r.Domain] = true
		}
	}
	if len(ids) == 0 {
		entries, err := s.local.List(ctx)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if e.DomainName == name && name != "" {
				ids[e.Domain] = true
			}
		}
	}
	for id := range ids {
		if len(ids) == 1 {
			return id, s.stillNamed(ctx, id, name)
		}
	}
	if len(ids) > 1 {
		err := failure.New(failure.Conflict, "domain %s: %d domains with this name have local copies", name, len(ids))
		return "", failure.Hint(err, "name it by its UUID; see `diskhook local list`")
	}
	err = failure.New(failure.NotFound, "domain %s: neither libvirt nor a local copy knows it", name)
	return "", failure.Hint(err, "see `diskhook domain list` and `diskhook local list`")
}

// workedOn is domainID for verbs that tell of work on copies, or stop it. While a
// start waits for a copy libvirt answers no question about its domain; who
// makes the copy knows the name.
func (s *services) workedOn(ctx context.Context, name string) (string, error) {
	if ids, err := s.local.AtWork(name); err == nil && len(ids) == 1 {
		return ids[0], nil
	}
	return s.domainID(ctx, name)
}

// stillNamed refuses the former name of a domain that libvirt has under
// another: receipts keep the name of the time when the copy was made.
func (s *services) stillNamed(ctx context.Context, id, name string) error {
	facts, err := s.domains.Libvirt.Facts(ctx, id)
	if err != nil || facts.Name == name {
		return nil // no libvirt, or not its domain
	}
	err = failure.New(failure.Conflict, "domain %s: it is called %s now", name, facts.Name)
	return failure.Hint(err, "use that name, or the UUID %s", id)
}

// keyOf is the key of a disk's copy: its target, or for a VM of oVirt the id
// of its image, which may be given as well.
func (s *services) keyOf(domain, disk string) (string, error) {
	odd := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }
	if strings.ContainsFunc(disk, odd) || len(disk) > 64 {
		err := failure.New(failure.Usage, "%q is not the target of a disk", disk)
		return "", failure.Hint(err, "name it like vda; see `diskhook local list`")
	}
	receipts, err := localdisk.Receipts(s.local.Layout, domain)
	if err != nil {
		return "", err
	}
	for _, r := range receipts {
		if r.Target == disk || r.Key() == disk {
			return r.Key(), nil
		}
	}
	return disk, nil
}
