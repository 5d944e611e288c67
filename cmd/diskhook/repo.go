// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/repository"
)

func repoCommand(p *program) *cli.Command {
	verb := p.verb
	place := func() []cli.Flag {
		return []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "localfs-1.0", Usage: "`FORMAT` of the repository"},
			&cli.StringSliceFlag{Name: "set", Aliases: []string{"s"}, Usage: "where it is, and how it is reached: `KEY=VALUE`, as path=/srv/images (repeatable)"},
			dryRunFlag(),
		}
	}
	return &cli.Command{
		Name: "repo", Usage: "storage repositories, which keep images",
		Subcommands: []*cli.Command{
			verb("create", "make an empty repository, and connect it", "REPO", repoCreate, place()...),
			verb("connect", "let this host use a repository, also after reboots", "REPO", repoConnect, place()...),
			verb("disconnect", "forget a repository; nothing in it is changed", "REPO", repoDisconnect,
				&cli.BoolFlag{Name: "force", Usage: "also if work of this host goes on there, or it does not answer"}, dryRunFlag()),
			verb("list", "list the repositories that are connected, and which of them answer", "", repoList),
			verb("stat", "show what a repository has room for, and what it can do", "REPO", repoStat),
			verb("check", "look for what can be fixed; exit 8 if there is something", "REPO", repoCheck, deepFlag(),
				&cli.StringSliceFlag{Name: "type", Usage: "only fixes of this `TYPE`: clean, optimize, merge or mend (repeatable)"}),
			verb("fix", "fix what check found: the fixes that are named, or all", "REPO [FIX...]", repoFix, deepFlag(),
				&cli.StringSliceFlag{Name: "type", Usage: "only fixes of this `TYPE`: clean, optimize, merge or mend (repeatable)"},
				&cli.BoolFlag{Name: "all", Usage: "all of them, and what they lead to"}, waitFlag(), dryRunFlag()),
		},
	}
}

func deepFlag() cli.Flag {
	return &cli.BoolFlag{Name: "deep", Usage: "also look into the volumes that nobody uses"}
}

// repositories is the service, whose work goes on in processes of its own.
func (p *program) repositories() (*repository.Service, error) {
	config, err := p.config()
	if err != nil {
		return nil, err
	}
	return p.repositoryService(config, p.logger())
}

func (p *program) repositoryService(config host.Config, log *slog.Logger) (*repository.Service, error) {
	s, err := repository.New(p.layout, config, log)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find diskhook itself: %w", err)
	}
	s.Start = worker{pathOf("DISKHOOK_PROGRAM", self), p.layout.Root, log}.start
	return s, nil
}

// worker starts `diskhook image work`, which outlives the verb.
type worker struct {
	program, root string
	log           *slog.Logger
}

func (w worker) start(ctx context.Context, repo, image string) error {
	d := command.Detached{
		Unit: "diskhook-image-" + image, Description: "diskhook: image " + repo + "/" + image,
		Argv: []string{w.program, "image", "work", repo + "/" + image},
		// Also if it was killed: what it has open no other host could have.
		Properties: []string{"ExecStopPost=" + w.program + " image work --after " + repo + "/" + image},
	}
	if w.root != "" {
		d.Env = []string{"DISKHOOK_ROOT=" + w.root}
	}
	return command.Detach(ctx, command.System{Log: w.log}, d)
}

// repoArgs is what a verb on one repository begins with.
func repoArgs(p *program, c *cli.Context, more ...string) (format, *repository.Service, []string, error) {
	f, err := outputOf(c)
	if err != nil {
		return f, nil, nil, err
	}
	words, err := operands(c, append([]string{"REPO"}, more...)...)
	if err != nil {
		return f, nil, nil, err
	}
	s, err := p.repositories()
	return f, s, words, err
}

func storageRepository(id string) subject {
	return subject{schema: "diskhook.repo-change/v1", key: "repository", word: "repository", name: id}
}

// parameters are the pairs of --set.
func parameters(c *cli.Context) (map[string]string, error) {
	all := map[string]string{}
	for _, pair := range c.StringSlice("set") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, see(c, failure.New(failure.Usage, "--set %q: not KEY=VALUE", pair))
		}
		if _, twice := all[key]; twice {
			return nil, see(c, failure.New(failure.Usage, "--set %s: it is there twice", key))
		}
		all[key] = value
	}
	return all, nil
}

func repoCreate(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	where, err := parameters(c)
	if err != nil {
		return err
	}
	format := c.String("format")
	connected, err := s.CheckRepositoryID(words[0], format, where)
	if err != nil {
		return err // it could not be connected
	}
	_, missing := s.PreviewConnect(c.Context, words[0], format, where)
	var steps []string
	switch {
	case missing == nil:
	case connected && errors.Is(missing, failure.NotFound):
		return failure.Hint(missing, "bring it back; if it is gone for good, `diskhook repo disconnect --force %s` before another one is made", words[0])
	case connected, !makeable(missing):
		return missing
	default:
		if err := s.PreviewCreate(c.Context, format, where); err != nil {
			return err
		}
		steps = append(steps, fmt.Sprintf("make a repository of format %s at %s", format, spell(where)))
	}
	if !connected {
		steps = append(steps, "connect it as "+words[0])
	}
	return p.change(f, c.Bool("dry-run"), storageRepository(words[0]), steps, func() (string, error) {
		ended := "connected"
		if missing != nil {
			ended = "made and connected"
		}
		if err := s.CreateStorageRepository(c.Context, format, where); err != nil {
			return "", err
		}
		return ended, s.ConnectStorageRepository(c.Context, words[0], format, where)
	})
}

// makeable says that a repository which cannot be opened for that reason may still be made,
// or be made usable here; what else is there its making tells.
func makeable(missing error) bool {
	return (errors.Is(missing, failure.NotFound) || errors.Is(missing, failure.Precondition)) && !errors.Is(missing, repository.ErrVersion)
}

func repoConnect(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	where, err := parameters(c)
	if err != nil {
		return err
	}
	already, err := s.PreviewConnect(c.Context, words[0], c.String("format"), where)
	if err != nil {
		return err
	}
	var steps []string
	if !already {
		steps = append(steps, fmt.Sprintf("connect the repository of format %s at %s as %s", c.String("format"), spell(where), words[0]))
	}
	return p.change(f, c.Bool("dry-run"), storageRepository(words[0]), steps, func() (string, error) {
		return "connected", s.ConnectStorageRepository(c.Context, words[0], c.String("format"), where)
	})
}

// spell writes parameters in one order.
func spell(parameters map[string]string) string {
	var pairs []string
	for key, value := range parameters {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, " ")
}

func repoDisconnect(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	if _, err := s.Connection(words[0]); err != nil && !c.Bool("force") {
		return err
	}
	steps := []string{"forget repository " + words[0]}
	return p.change(f, c.Bool("dry-run"), storageRepository(words[0]), steps, func() (string, error) {
		return "disconnected", s.DisconnectStorageRepository(c.Context, words[0], repository.Disconnect{Force: c.Bool("force")})
	})
}

func repoList(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	if _, err := operands(c); err != nil {
		return err
	}
	s, err := p.repositories()
	if err != nil {
		return err
	}
	all, err := s.Survey(c.Context)
	if err != nil {
		return err
	}
	l := listing{
		schema: "diskhook.repos/v1", member: "repositories", items: append([]repository.Standing{}, all...),
		header: []string{"REPO", "FORMAT", "STATE", "FREE", "WHERE"}, ifEmpty: "no repositories are connected",
	}
	for _, r := range all {
		free := ""
		if r.Capacity != nil {
			free = size(r.Capacity.Available)
		}
		l.names = append(l.names, r.RepoID)
		l.rows = append(l.rows, []string{r.RepoID, r.Format, string(r.State), free, spell(r.Parameters)})
	}
	err = p.print(f, l)
	for _, r := range all {
		if r.Error != "" && f == table {
			fmt.Fprintf(p.stderr, "diskhook: %s\n", harmless(r.Error))
		}
	}
	return err
}

func repoStat(p *program, c *cli.Context) error {
	f, s, words, err := repoArgs(p, c)
	if err != nil {
		return err
	}
	capacity, err := s.Capacity(c.Context, words[0])
	if err != nil {
		return err
	}
	can, err := s.Capabilities(c.Context, words[0])
	if err != nil {
		return err
	}
	if f == inJSON {
		return p.printJSON(map[string]any{"schema": "diskhook.repo/v1", "repository": words[0], "capacity": capacity, "capabilities": can})
	}
	l := listing{header: []string{"REPO", "FORMAT", "SIZE", "FREE", "CLONES", "SPARSE", "SHARED", "READ ONLY"}, names: words[:1]}
	l.rows = [][]string{{words[0], can.Format, size(capacity.Total), size(capacity.Available), yesNo(can.Clones), yesNo(can.Sparse), yesNo(can.Shared), yesNo(can.ReadOnly)}}
	return p.print(f, l)
}

// pollEvery is how often a verb looks at work that it waits for.
const pollEvery = 300 * time.Millisecond
