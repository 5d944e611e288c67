// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

func exportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "image `FORMAT`: raw or qcow2 (default: by the file's name)"},
		&cli.StringFlag{Name: "rate", Usage: "read at most `SIZE` per second (default: no limit)"},
		connectFlag(), dryRunFlag(),
	}
}

func localExport(p *program, c *cli.Context) error {
	f, s, words, domain, key, err := copyArgs(p, c, "FILE")
	if err != nil {
		return err
	}
	to, err := absolute(words[2])
	if err != nil {
		return err
	}
	kind, err := imageFormat(c.String("format"), to, func(format, file string) []string {
		return []string{"diskhook", "local", "export", "--format", format, words[0], words[1], file}
	})
	if err != nil {
		return err
	}
	o := localdisk.ExportOptions{To: to, Format: kind}
	if o.Rate, err = rateOf(c); err != nil {
		return err
	}
	steps, err := s.local.ExportCommands(c.Context, domain, key, o)
	if err != nil {
		return err
	}
	return p.change(f, c.Bool("dry-run"), copiesOf(words[0]), steps, done(func() error {
		r := p.reporter(f)
		defer r.close()
		o.Progress = r.work("export of " + words[0] + " " + words[1])
		return s.local.Export(c.Context, domain, key, o)
	}))
}

// rateOf is what --rate says, in bytes per second; 0 is no limit.
func rateOf(c *cli.Context) (int64, error) {
	text := c.String("rate")
	if text == "" {
		return 0, nil
	}
	rate, err := host.ParseSize(text)
	if err != nil {
		return 0, fmt.Errorf("--rate: %w", err)
	}
	return rate, nil
}
