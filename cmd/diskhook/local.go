// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

func localCommand(p *program) *cli.Command {
	verb := p.verb
	discard := func() cli.Flag {
		return &cli.BoolFlag{Name: "discard-guest-data", Usage: "give up what the guest wrote into the copy"}
	}
	export := func() cli.Flag {
		return &cli.StringFlag{Name: "export", Usage: "write the disk to this new `FILE` first (qcow2 if so named, else raw)"}
	}
	rate := func() cli.Flag {
		return &cli.StringFlag{Name: "rate", Usage: "read at most `SIZE` per second for --export (default: no limit)"}
	}
	return &cli.Command{
		Name: "local", Usage: "local copies of disks on this host",
		Subcommands: []*cli.Command{
			verb("list", "list copies, and what is wrong with them", "", localList, connectFlag()),
			verb("status", "show copies of a domain, how far they are, and whether their source has changed", "[NAME[/DISK]...]", localStatus, statusFlags()...),
			verb("prestage", "make the copies of domains' disks now, so that their starts find them", "NAME[/DISK]...", localPrestage, prestageFlags()...),
			verb("settle", "read into an overlay (fill=instant) what it takes from its source, so that it needs it no more", "[NAME] [TARGET]", localSettle, settleFlags()...),
			verb("accept", "say that the source of an overlay that is not settled is the image that it was, in another file", "NAME TARGET", localAccept, acceptFlags()...),
			verb("cancel", "stop the making or settling of a copy, or an export", "NAME TARGET", localCancel, connectFlag(), dryRunFlag()),
			verb("recreate", "give a copy up and make it again from its source", "NAME TARGET", localRecreate,
				export(), rate(), discard(), bindFlag(), localFlag(), xmlFlag(), connectFlag(), dryRunFlag()),
			verb("remove", "give a copy up", "NAME TARGET", localRemove, export(), rate(), discard(), connectFlag(), dryRunFlag()),
			verb("resize", "grow a copy, and tell a running guest", "NAME TARGET SIZE", localResize, connectFlag(), dryRunFlag()),
			verb("export", "write a disk as its guest left it to a new file", "NAME TARGET FILE", localExport, exportFlags()...),
			verb("adopt", "take over a complete copy that has no receipt, on your word, or all that oVirt's hook made", "[NAME] [TARGET]", localAdopt, adoptFlags()...),
			verb("gc", "remove what is left of copies that no guest ever wrote to", "", localGC, gcFlags()...),
			{
				Name: "fill", Usage: "make one copy (started by diskhook itself)", ArgsUsage: "JOBFILE", Hidden: true,
				Action: func(c *cli.Context) error { return localFill(p, c) },
			},
		},
	}
}

// localFill is the process that makes a copy. Nobody reads its output: it
// logs, and tells the status file.
func localFill(p *program, c *cli.Context) error {
	words, err := operands(c, "JOBFILE")
	if err != nil {
		return err
	}
	log, closeLog := hookLog(p.layout)
	defer closeLog()
	config, err := p.config()
	if err != nil {
		log.Warn("configuration", "err", err) // as the hook that started us did
	}
	s, err := p.localService(config, log)
	if err != nil {
		return err
	}
	return s.Fill(c.Context, words[0])
}

// boundDisks are the local disks of a domain, from libvirt or from --xml,
// bound by its metadata or by flags.
func boundDisks(p *program, c *cli.Context, s *services, name string, targets ...string) ([]localdisk.Disk, error) {
	written, err := flagBindings(c)
	if err != nil {
		return nil, err
	}
	var doc *xmlrewrite.Document
	if file := c.String("xml"); file != "" {
		if doc, err = p.readDocument(file); err == nil && name != doc.Name() && name != doc.UUID() {
			err = failure.New(failure.Usage, "%s: it is of the domain %q, not %q", file, doc.Name(), name)
		}
	} else {
		looked, lookErr := s.domains.Look(c.Context, name)
		doc, err = looked.Doc, lookErr
	}
	if err != nil {
		return nil, err
	}
	d, err := bindings.ReadDomain(doc)
	if err != nil {
		return nil, err
	}
	if err := bindings.SameDomain(d); err != nil {
		return nil, err
	}
	bound, _, err := bindings.Resolve(d, written)
	if err != nil {
		return nil, err
	}
	disks, err := s.domains.LocalDisks(c.Context, d, bound, targets...)
	if err == nil && len(disks) == 0 {
		err = failure.New(failure.NotFound, "domain %s: no disk is bound to a local copy", name)
		err = failure.Hint(err, "bind them with `diskhook domain apply --local '*' %s`", d.NameArg())
	}
	return disks, err
}

// planned is what making the copies of disks would do.
func (s *services) planned(c *cli.Context, disks []localdisk.Disk) ([]string, error) {
	observed, err := s.local.ObserveSources(c.Context, disks)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, o := range observed {
		decision := localdisk.Decide(o)
		if decision.Err != nil {
			return nil, decision.Err
		}
		if decision.Action != localdisk.Use {
			lines = append(lines, "# "+o.Describe(decision))
			lines = append(lines, s.local.FillCommands(c.Context, o, decision)...)
		}
	}
	return lines, nil
}

// copyArgs are the arguments of a verb on one copy that is there.
func copyArgs(p *program, c *cli.Context, more ...string) (f format, s *services, words []string, domain, key string, err error) {
	return diskArgs(p, c, (*services).domainID, more...)
}

// diskArgs are those of a verb on one disk of a domain, whose UUID idOf finds.
func diskArgs(p *program, c *cli.Context, idOf func(*services, context.Context, string) (string, error), more ...string) (f format, s *services, words []string, domain, key string, err error) {
	f, s, words, err = verbArgs(p, c, append([]string{"NAME", "TARGET"}, more...)...)
	if err != nil {
		return
	}
	if domain, err = idOf(s, c.Context, words[0]); err != nil {
		return
	}
	key, err = s.keyOf(domain, words[1])
	return
}

func localCancel(p *program, c *cli.Context) error {
	f, s, words, domain, key, err := diskArgs(p, c, (*services).workedOn)
	if err != nil {
		return err
	}
	dryRun := c.Bool("dry-run")
	working, err := s.local.Working(domain, key)
	if err != nil {
		return err
	}
	if dryRun && !working {
		fmt.Fprintf(p.stderr, "diskhook: domain %s: disk %s: nothing to cancel\n", harmless(words[0]), words[1])
		if f != inJSON {
			return nil
		}
		return p.change(f, dryRun, copiesOf(words[0]), nil, nil)
	}
	what, exporting := "copy", s.local.Exporting(domain, key)
	if exporting {
		what = "export"
	}
	step := fmt.Sprintf("stop the %s of disk %s", what, words[1])
	return p.change(f, dryRun, copiesOf(words[0]), []string{step}, func() (string, error) {
		if err := s.local.Cancel(c.Context, domain, key); err != nil {
			return "", err
		}
		if exporting {
			return "done", nil // what became of the file says who exported it
		}
		return s.afterCancel(c.Context, domain, key)
	})
}

// afterCancel says how a cancel ended: the copy may have completed before the
// word to stop reached it, or be kept as far as it came.
func (s *services) afterCancel(ctx context.Context, domain, key string) (string, error) {
	entries, err := s.entries(ctx, domain, key)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.Copy.State == localdisk.Ready && e.Receipt != nil && !e.Receipt.Unsettled() {
			return fmt.Sprintf("nothing was cancelled: the copy of disk %s had completed", e.Target), nil
		}
		if e.Copy.State == localdisk.Updating && !e.Busy && e.Problem != "" {
			return fmt.Sprintf("done; disk %s: %s", e.Target, e.Matter()), nil
		}
	}
	return "done", nil
}

// absolute makes a file's path independent of where we were started.
func absolute(file string) (string, error) {
	if file == "" {
		return "", failure.New(failure.Usage, "the name of the file is empty")
	}
	if file == "-" {
		return "", failure.Hint(failure.New(failure.Usage, `"-" is no file: a disk is not written to standard output`), "name a new file, such as disk.qcow2")
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return "", errors.Join(failure.New(failure.Usage, "%q: no such directory to start from", file), err)
	}
	return path, nil
}
