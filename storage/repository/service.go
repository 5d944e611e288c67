// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/lvm"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
	"diskhook/storage/repository/format/localfs"
	"diskhook/storage/repository/format/nfs"
	"diskhook/storage/transfer"
)

// Service is what the verbs are methods of. It keeps no state between calls and
// may be used from any goroutine. All fields but Start are needed.
type Service struct {
	Layout host.Layout
	// HostID tells this host from others that have the same repository connected,
	// BootID this boot from the last.
	HostID, BootID string
	Formats        []format.Format
	// Deadline is how long a repository's storage may take for one step before
	// it is ErrUnreachable.
	Deadline time.Duration
	Engine   *transfer.Engine
	Images   *qemuimg.QemuImg
	// Allowed bounds the paths that may be imported.
	Allowed imagecheck.Allowed
	Log     *slog.Logger
	// Start begins the work of an image's plan and does not wait for it: a
	// process that calls Run. Nil: the verb does not return before the work ends.
	Start func(ctx context.Context, repoID, imageID string) error
}

// New returns the service of this host.
func New(layout host.Layout, config host.Config, log *slog.Logger) (*Service, error) {
	machine, err := layout.MachineID()
	if err != nil {
		return nil, err
	}
	boot, err := layout.BootID()
	if err != nil {
		return nil, err
	}
	run := command.System{Log: log}
	groups := clvm.Format{
		LVM: &lvm.LVM{Run: run, Devices: config.LVM.Devices, Timeout: time.Duration(config.LVM.Timeout)}, Dev: layout.Dev(),
		HostID: machine, BootID: boot, Number: config.Repository.HostID,
		Locks: layout.Locks(), Cursors: filepath.Join(layout.State(), "repository-cursors"),
	}
	return &Service{
		Layout: layout, HostID: machine, BootID: boot,
		Formats:  []format.Format{localfs.Format{}, nfs.Format{HostID: machine, BootID: boot}, groups},
		Deadline: time.Duration(config.Repository.Deadline),
		Engine:   &transfer.Engine{Run: run, Log: log},
		Images:   &qemuimg.QemuImg{Run: run},
		Allowed:  config.Paths.Allowed,
		Log:      log,
	}, nil
}
