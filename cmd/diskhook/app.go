// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/managed"
	"diskhook/xmlrewrite"
)

// program is one run of diskhook: its streams, and the host that it works on.
type program struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	layout         host.Layout
	verbosity      int
	// storage, if set, has a test's storage take the place of the kernel's.
	storage func(*managed.Service) error
	// kernel, if set, has a test's device-mapper take the place of the kernel's.
	kernel func(*thinCluster)
}

// run is main, but for the process: it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{
		args: args, stdin: stdin, stdout: stdout, stderr: stderr,
		layout: host.Layout{Root: os.Getenv("DISKHOOK_ROOT")},
	}
	return p.run(ctx)
}

func (p *program) run(ctx context.Context) int {
	ctx, stop := withSignals(ctx)
	defer stop()
	if c, ok := hookCall(p.args); ok {
		return p.runHook(ctx, c)
	}
	return p.finish(ctx, New(p).RunContext(ctx, p.args))
}

// New builds the command line. It is a function of its own so that tests can
// walk over every command and flag.
func New(p *program) *cli.App {
	app := &cli.App{
		Name:      "diskhook",
		Usage:     "make the disks of virtual machines ready on their host",
		UsageText: "diskhook [-v] NOUN VERB [OPTIONS] [ARGUMENTS]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log what is done to standard error; twice: every command", Count: &p.verbosity},
			&cli.BoolFlag{Name: "version", Usage: "print the version"},
		},
		Commands: []*cli.Command{
			domainCommand(p),
			localCommand(p),
			volumeCommand(p),
			quorumCommand(p),
			repoCommand(p),
			imageCommand(p),
			thinCommand(p),
			rewriteCommand(p),
			showCommand(p),
			doctorCommand(p),
			hookCommand(p),
			configCommand(p),
			versionCommand(p),
		},
		Action: func(c *cli.Context) error {
			if c.Bool("version") && !c.Args().Present() {
				return printVersion(p, table)
			}
			return noVerb(c)
		},
		Writer:    p.stderr, // of help after an error; asked for, it is data
		ErrWriter: p.stderr,
	}
	if asksForHelp(args(p)) {
		app.Writer = p.stdout
	}
	guard(p, app)
	return app
}

func args(p *program) []string {
	if len(p.args) == 0 {
		return nil
	}
	return p.args[1:]
}

// logger writes to standard error, as much as -v asks for.
func (p *program) logger() *slog.Logger {
	level := slog.LevelWarn - slog.Level(4*p.verbosity)
	return slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// config is the host's configuration; a wrong one stops a CLI.
func (p *program) config() (host.Config, error) {
	config, err := host.Load(p.layout)
	if err != nil {
		return config, err
	}
	if err := bindings.CheckRules(config.Rules); err != nil {
		return config, fmt.Errorf("%s: %w", p.layout.Config(), err)
	}
	return config, nil
}

// stopped is the cause of a context that a signal ended.
type stopped struct{ signal syscall.Signal }

func (s stopped) Error() string { return "stopped by " + s.signal.String() }

// withSignals ends the context at SIGINT, SIGTERM and SIGHUP. The second
// signal ends the process as if we were not there.
func withSignals(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case got := <-signals:
			signal.Stop(signals)
			cancel(stopped{got.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// readXML reads a domain's XML from the named file, or from standard input if
// it is "-" or "", up to one byte more than is ever taken.
func (p *program) readXML(name string) ([]byte, error) {
	in := p.stdin
	if name != "" && name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, failure.Wrap(failure.NotFound, err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, xmlrewrite.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the domain XML: %w", err)
	}
	return b, nil
}
