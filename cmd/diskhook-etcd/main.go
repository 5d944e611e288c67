// SPDX-License-Identifier: Apache-2.0

// Command diskhook-etcd takes a thin cluster's membership from etcd, on one host
// of the cluster:
//
//	diskhook-etcd CLUSTER
//
// It is the only program of diskhook that speaks to etcd, whose client has a large
// part in any program's start. Its unit, diskhook-thin-etcd@CLUSTER.service, runs
// it; `diskhook thin membership etcd` does the same by hand. What it has to say to
// the cluster it says by running verbs of diskhook (packages membership and etcd).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/lock"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/membership"
	"diskhook/storage/thin/membership/etcd"
)

// Set by the linker.
var (
	version = "unknown"
	program = "/usr/bin/diskhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 1 && args[0] == "--version":
		fmt.Fprintf(stdout, "diskhook-etcd %s\n", version)
		return 0
	case len(args) != 1 || strings.HasPrefix(args[0], "-"):
		fmt.Fprintln(stderr, "usage: diskhook-etcd CLUSTER")
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := serve(ctx, host.Layout{Root: os.Getenv("DISKHOOK_ROOT")}, args[0], log); err != nil {
		fmt.Fprintln(stderr, "diskhook-etcd: "+failure.Line(err))
		return 1
	}
	return 0
}

func serve(ctx context.Context, l host.Layout, name string, log *slog.Logger) error {
	d, err := cluster.Load(l, name)
	if err != nil {
		return err
	}
	config, err := configOf(d)
	if err != nil {
		return err
	}
	a := etcd.Adapter{Config: config, Cluster: d.Name, Run: command.System{Log: log}, Log: log}
	a.Verbs = membership.Commands{Run: a.Run, Program: program, Cluster: d.Name}
	if a.Host, err = d.ThisHost(); err != nil {
		return err
	}
	if a.Boot, err = l.BootID(); err != nil {
		return err
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return fmt.Errorf("time since boot: %w", err)
	}
	a.Booted = time.Now().Add(-time.Duration(up.Nano()))
	// Two of them would speak for one host, and the end of one would be its end.
	held, err := lock.Try(l.Locks(), "thin-etcd-"+d.Name)
	if err != nil {
		return fmt.Errorf("cluster %s: another diskhook-etcd: %w", d.Name, err)
	}
	defer held.Release()
	return a.Serve(ctx)
}

// configOf is the part of a definition that is for etcd.
func configOf(d cluster.Definition) (etcd.Config, error) {
	var engines struct {
		Etcd *etcd.Config `json:"etcd"`
	}
	decoder := json.NewDecoder(strings.NewReader(string(d.Membership)))
	decoder.DisallowUnknownFields()
	if len(d.Membership) > 0 {
		if err := decoder.Decode(&engines); err != nil {
			return etcd.Config{}, failure.New(failure.Precondition, "cluster %s: membership: %w", d.Name, err)
		}
	}
	if engines.Etcd == nil {
		err := failure.New(failure.Precondition, "cluster %s: its definition does not say how to reach etcd", d.Name)
		return etcd.Config{}, failure.Hint(err, `add "membership": {"etcd": {"endpoints": ["https://HOST:2379"]}} to it, on each host`)
	}
	return *engines.Etcd, engines.Etcd.Check()
}
