// SPDX-License-Identifier: Apache-2.0

// Command diskhook-helper does for VDSM's hooks what needs root: fixed verbs
// on local copies of oVirt's disks, replica sets and managed volumes, with
// configuration and definitions that only root can write. It is run by sudo(8) and speaks the protocol of package privileged.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"diskhook/hooks/bindings"
	"diskhook/hooks/privileged"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector"
	"diskhook/storage/quorum"
)

// Set by the linker.
var (
	program = "/usr/bin/diskhook" // what copies are filled by
	version = "unknown"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Fprintln(os.Stdout, "diskhook-helper", version)
		return
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	service, err := newService(log)
	if err != nil {
		privileged.Refuse(os.Stdout, err)
		os.Exit(1)
	}
	sets := &quorum.Service{Layout: service.Layout, Config: service.Config, Run: service.Run, Log: log, Program: service.Program, Reader: service.User}
	machine := &connector.Host{Run: service.Run, Log: log, Root: filepath.Join("/", service.Layout.Root)}
	server := privileged.Server{
		Service: service, Quorum: bindings.DirectQuorum(sets), Volumes: managed.New(service.Layout, service.Config.Managed, log),
		ConnectorInfo: machine.Properties,
	}
	if !server.Serve(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr) {
		os.Exit(1)
	}
}

func newService(log *slog.Logger) (*localdisk.Service, error) {
	layout := layout()
	config, err := privileged.LoadConfig(layout, uint32(os.Geteuid()))
	switch {
	case failure.KindOf(err) == failure.Usage:
		log.Warn("configuration", "err", err)
	case err != nil:
		return nil, err
	}
	if os.Geteuid() != 0 && layout.Root == "" {
		err := failure.New(failure.Precondition, "it must run as root")
		return nil, failure.Hint(err, "VDSM's hooks run it by `sudo -n %s`", privileged.Helper)
	}
	reader, owner, err := localdisk.OVirtIdentities(layout)
	if err != nil {
		return nil, err
	}
	return &localdisk.Service{
		Layout: layout, Config: config, Run: command.System{Log: log}, Log: log,
		Program: programPath(), User: reader, Owner: owner,
	}, nil
}
