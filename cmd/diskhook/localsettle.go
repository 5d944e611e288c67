// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

func settleFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "settle every disk of this host that is not"},
		&cli.StringFlag{Name: "rate", Usage: "read at most `SIZE` per second (default: [local] rate)"},
		&cli.BoolFlag{Name: "raw", Usage: "make a raw copy of the disk, also while its domain runs, and go on with that"},
		&cli.BoolFlag{Name: "no-raw", Usage: "remove the raw copy that an interrupted --raw has left, and settle the overlay"},
		connectFlag(), dryRunFlag(),
	}
}

// localSettle reads into overlays what they take from their sources.
func localSettle(p *program, c *cli.Context) error {
	f, s, words, err := verbArgs(p, c, "[NAME]", "[TARGET]")
	if err != nil {
		return err
	}
	rate, err := s.settleRate(c)
	if err != nil {
		return err
	}
	disks, damaged, err := s.toSettle(c, words[0], words[1])
	if err != nil {
		return err
	}
	var steps []string
	for _, r := range disks {
		if c.Bool("no-raw") && r.Pivot != nil {
			if err := s.domains.MayKeepOverlay(c.Context, r); err != nil {
				return err
			}
			steps = append(steps, fmt.Sprintf("remove %s, which is not the disk", r.LeftRaw()))
			if !r.Unsettled() {
				continue
			}
		} else if c.Bool("raw") || r.Pivot != nil {
			steps = append(steps, fmt.Sprintf("make a raw copy of %s, go over to it, and remove %[1]s", r.Place()))
			continue
		}
		steps = append(steps, fmt.Sprintf("read %s into %s and mark disk %s as settled", r.Source[0].Path, r.Place(), r.Target))
	}
	err = p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, done(func() error {
		r := p.reporter(f)
		defer r.close()
		var failed []error
		for _, disk := range disks {
			err := s.settle(c, disk, rate, r.work("settling of "+disk.Disk().String()))
			switch {
			case err == nil, errors.Is(err, localdisk.ErrSettled):
			case c.Bool("all") && errors.Is(err, localdisk.ErrStarts): // which is as it should be
				p.notice(err)
			default:
				failed = append(failed, err)
				if len(disks) > 1 { // the others may take hours
					p.notice(err)
				}
			}
			if c.Context.Err() != nil {
				break
			}
		}
		return firstOf(failed)
	}))
	return errors.Join(err, damaged)
}

// settle makes one disk whole, or raw. One that was on its way to raw goes on,
// or, where that is not possible any more or not wanted, is taken back and made
// whole.
func (s *services) settle(c *cli.Context, r localdisk.Receipt, rate int64, notify progress.Func) error {
	switch {
	case c.Bool("no-raw") && r.Pivot != nil:
		if err := s.domains.KeepOverlay(c.Context, r.Domain, r.Key()); err != nil {
			return err
		}
	case c.Bool("raw") || r.Pivot != nil:
		err := s.domains.SettleRaw(c.Context, r.Domain, r.Key(), rate, notify)
		if c.Bool("raw") || !errors.Is(err, failure.Precondition) {
			return err
		}
	}
	return s.domains.Settle(c.Context, r.Domain, r.Key(), rate, notify)
}

// notice tells at once how it went with one disk of several.
func (p *program) notice(err error) { fmt.Fprintf(p.stderr, "diskhook: %s\n", failure.Line(err)) }

// firstOf is one error, or how many there were with the hint of the first.
func firstOf(all []error) error {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	err := fmt.Errorf("%d disks are not settled, first of them: %w", len(all), all[0])
	return failure.Hint(err, "%s", failure.HintOf(all[0]))
}

func (s *services) settleRate(c *cli.Context) (int64, error) {
	if c.String("rate") == "" {
		return int64(s.config.Local.Rate), nil
	}
	return rateOf(c)
}

// toSettle are the disks that are named and not settled. damaged tells of
// receipts that cannot be read, which stop no other disk.
func (s *services) toSettle(c *cli.Context, name, disk string) (unsettled []localdisk.Receipt, damaged, err error) {
	switch {
	case name == "" && !c.Bool("all"):
		err := failure.New(failure.Usage, "NAME is missing")
		return nil, nil, failure.Hint(err, "name a domain, or write `diskhook local settle --all`")
	case name != "" && c.Bool("all"):
		return nil, nil, see(c, failure.New(failure.Usage, "--all takes no NAME"))
	case name == "" && (c.Bool("raw") || c.Bool("no-raw")):
		return nil, nil, see(c, failure.New(failure.Usage, "--raw and --no-raw take a NAME"))
	case c.Bool("raw") && c.Bool("no-raw"):
		return nil, nil, see(c, failure.New(failure.Usage, "--raw and --no-raw exclude each other"))
	}
	domain := ""
	if name != "" {
		if domain, err = s.domainID(c.Context, name); err != nil {
			return nil, nil, err
		}
	}
	receipts, damaged := localdisk.Receipts(s.local.Layout, domain)
	if domain != "" && damaged != nil {
		return nil, nil, damaged
	}
	found := domain == ""
	for _, r := range receipts {
		if disk != "" && r.Target != disk && r.Key() != disk {
			continue
		}
		found = true
		if r.Unsettled() || r.Pivot != nil || c.Bool("raw") && r.Overlay != nil {
			unsettled = append(unsettled, r)
		}
	}
	if !found {
		err := failure.New(failure.NotFound, "domain %s: no local copy of %s", name, or(disk, "any disk"))
		return nil, nil, failure.Hint(err, "see `diskhook local list`")
	}
	return unsettled, damaged, nil
}
