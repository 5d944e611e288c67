// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

func versionCommand(p *program) *cli.Command {
	return &cli.Command{
		Name: "version", Usage: "print the version",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			f, err := outputOf(c)
			if err != nil {
				return err
			}
			if _, err := operands(c); err != nil {
				return err
			}
			return printVersion(p, f)
		},
	}
}

func printVersion(p *program, f format) error {
	commit := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	switch f {
	case inJSON:
		return p.printJSON(map[string]string{
			"schema": "diskhook.version/v1", "version": version, "commit": commit,
			"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
		})
	case asNames:
		_, err := fmt.Fprintln(p.stdout, version)
		return err
	}
	if commit != "" {
		commit = " commit " + commit
	}
	_, err := fmt.Fprintf(p.stdout, "diskhook %s%s (%s %s/%s)\n", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
