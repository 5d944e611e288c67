// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// giveUp reads the options that say what becomes of a guest's data, and the
// steps of giving a copy up. It refuses, as the verb itself would, when the
// data would be lost without a word.
func (s *services) giveUp(c *cli.Context, domain, key string) (g localdisk.GiveUp, steps []string, err error) {
	g.DiscardGuestData = c.Bool("discard-guest-data")
	if g.Rate, err = rateOf(c); err != nil {
		return g, nil, err
	}
	if g.Rate > 0 && c.String("export") == "" {
		return g, nil, see(c, failure.New(failure.Usage, "--rate is for --export FILE"))
	}
	if file := c.String("export"); file != "" {
		if g.Export, err = absolute(file); err != nil {
			return g, nil, err
		}
		if _, err := imageFormat("", g.Export, func(_, file string) []string {
			return []string{"diskhook", "local", c.Command.Name, "--export", file, c.Args().Get(0), c.Args().Get(1)}
		}); err != nil {
			return g, nil, err
		}
	}
	if err := s.domains.MayChange(c.Context, domain, key); err != nil {
		return g, nil, err
	}
	if err := s.local.Idle(c.Context, domain, key); err != nil {
		return g, nil, err
	}
	entries, err := s.local.List(c.Context)
	if err != nil {
		return g, nil, err
	}
	for _, e := range entries {
		if e.Domain != domain || e.Key != key {
			continue
		}
		if r := e.Receipt; r != nil && r.Used && !r.Discarding && e.Copy.State == localdisk.Absent && !g.DiscardGuestData {
			err := failure.New(failure.Conflict, "domain %s: disk %s: its local copy is gone, and with it what the guest wrote", domain, e.Target)
			return g, nil, failure.Hint(err, "bring it back, or add --discard-guest-data to give it up")
		}
		if r := e.Receipt; r != nil && r.Used && !r.Discarding && g.Export == "" && !g.DiscardGuestData {
			err := failure.New(failure.Conflict, "domain %s: disk %s: what the guest wrote is in its local copy, and nowhere else", domain, e.Target)
			return g, nil, failure.Hint(err, "add --export FILE to keep it, or --discard-guest-data to give it up")
		}
		if err := s.local.Removable(e, g); err != nil {
			return g, nil, err
		}
		if g.Export != "" {
			steps = append(steps, fmt.Sprintf("export disk %s to %s", e.Target, g.Export))
		}
		if e.Copy.State != localdisk.Absent {
			steps = append(steps, fmt.Sprintf("remove %s", e.Copy))
		}
		if e.Failed() {
			steps = append(steps, fmt.Sprintf("forget that the copy of disk %s failed", e.Target))
		}
		if e.Receipt != nil {
			steps = append(steps, fmt.Sprintf("remove the receipt of disk %s", e.Target))
		}
	}
	return g, steps, nil
}

func localRemove(p *program, c *cli.Context) error {
	f, s, words, domain, key, err := copyArgs(p, c)
	if err != nil {
		return err
	}
	g, steps, err := s.giveUp(c, domain, key)
	if err != nil {
		return err
	}
	ended := "done"
	if g.Export != "" {
		older := fmt.Sprintf("the next start copies the source again, whose data is older than %s; for a domain that goes on with its file there is `diskhook domain revert --export`", g.Export)
		steps, ended = append(steps, "# "+older), "done; "+older
	}
	return p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, func() (string, error) {
		return ended, s.domains.Remove(c.Context, domain, key, g)
	})
}

func localRecreate(p *program, c *cli.Context) error {
	f, s, words, domain, key, err := copyArgs(p, c)
	if err != nil {
		return err
	}
	g, steps, err := s.giveUp(c, domain, key)
	if err != nil {
		return err
	}
	disk, err := s.diskOf(p, c, words[0], words[1], domain, key)
	if err != nil {
		return err
	}
	source := "image "
	if disk.From != nil {
		source += disk.From.String()
	} else {
		source = disk.Source[0].Path
	}
	steps = append(steps, fmt.Sprintf("make a copy of disk %s from %s", disk.Target, source))
	return p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, done(func() error {
		r := p.reporter(f)
		defer r.close()
		return s.domains.Recreate(c.Context, disk, g, localdisk.Waiting{Notify: r.copies})
	}))
}

// diskOf is a disk with the source to make its copy from: as the domain is
// bound, or where that cannot be known, as its receipt says. The chain below
// is looked up again, since it may be another than the copy was made from.
func (s *services) diskOf(p *program, c *cli.Context, name, target, domain, key string) (localdisk.Disk, error) {
	disks, err := boundDisks(p, c, s, name, target)
	if err == nil {
		return s.domains.Rediscover(c.Context, disks[0])
	}
	if k := kindOf(err); k != failure.NotFound && k != failure.Precondition {
		return localdisk.Disk{}, err
	}
	receipts, failed := localdisk.Receipts(s.local.Layout, domain)
	if failed != nil {
		return localdisk.Disk{}, failed
	}
	for _, r := range receipts {
		if r.Key() == key && len(r.Source) > 0 {
			disk := r.Disk()
			disk.Create = true
			return s.domains.Rediscover(c.Context, disk)
		}
	}
	return localdisk.Disk{}, err
}
