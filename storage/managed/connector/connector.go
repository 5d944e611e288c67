// SPDX-License-Identifier: Apache-2.0

// Package connector attaches volumes to this host, and takes them away again,
// by what Cinder calls connection_info: one file for each driver_volume_type,
// and one for external programs. It keeps no record; package managed does.
//
// # The contract of a connector
//
// Open checks connection data and touches nothing, so that what cannot work is
// refused before anything is connected. Attach and Detach start from what is
// there: each may follow a crash of either at any step, and converges. Detach
// goes by the connection data alone where the outcome of Attach is not known,
// goes on when the device has vanished, and leaves neither session nor path
// nor map behind that no other volume uses. It never pulls a device away from
// somebody who has it open: that is a failure.Conflict.
//
// Attach returns what the device is (Identity) as the kernel has it now, never
// from before: a device that was left behind at the same address is looked at
// afresh. Where paths to one volume disagree about what it is, it fails with
// ErrMismatch.
//
// Programs that talk to storage get secrets in private files or on stdin,
// never in argv; whatever they say passes a scrubber before it is logged or
// becomes part of an error.
package connector

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// Connector attaches one volume, the one whose connection data it was made from.
type Connector interface {
	// Takes names what the volume occupies: two volumes that take the same
	// are one device under two names.
	Takes() []string
	// Shares names what it uses together with other volumes: targets,
	// subsystems, mounts. The caller holds a lock on each while it calls
	// Attach or Detach.
	Shares() []string
	// Attach connects the volume and waits for its device.
	Attach(ctx context.Context) (Attachment, error)
	// Detach takes away what Attach made. The attachment is empty where a
	// crash lost it; others are those of the volumes that stay.
	Detach(ctx context.Context, was Attachment, others []Connector) error
	// Disks names the disks that the volume has on this host now, attached or
	// not: sdX of each path, nvmeXnY, rbdN. Maps over them are not among them.
	Disks(ctx context.Context) []string
	// Rescan has the kernel ask the storage how large the attached volume is.
	Rescan(ctx context.Context, was Attachment) error
	// Explain tells what Attach, called now, would do: command lines as they
	// would be run, and lines with # for what no command does or what an
	// answer decides. It changes nothing.
	Explain(ctx context.Context) ([]string, error)
	// ExplainDetach does so for Detach. That it would be refused because
	// somebody has the device open is ErrInUse.
	ExplainDetach(ctx context.Context, was Attachment, others []Connector) ([]string, error)
}

// Attachment is the outcome of Attach.
type Attachment struct {
	// Path names the device or file for as long as it is attached.
	Path string
	// MultipathID is the WWID of its multipath map, if it has one.
	MultipathID string
	// JSON is the object that os-brick returns for this type, and VDSM passes on.
	JSON json.RawMessage
	// Identity is what the volume is.
	Identity Identity
}

// Identity tells one volume from another, wherever it turns up.
type Identity struct {
	WWN  string `json:"wwn"`  // as multipath names it, or what else is unique; empty if there is none
	Size int64  `json:"size"` // bytes
}

// The ways in which connection data or a device can be wrong. What else fails
// is the storage's or a program's failure.
var (
	// ErrUnsupported is for types and forms that nobody here can attach.
	ErrUnsupported = failure.Wrap(failure.Precondition, errors.New("this connection is not supported"))
	// ErrInvalid is for connection data with a missing key or a wrong value.
	ErrInvalid = failure.Wrap(failure.Usage, errors.New("invalid connection data"))
	// ErrNoMultipath says that no multipath map appeared where one is needed.
	ErrNoMultipath = failure.Wrap(failure.Precondition, errors.New("no multipath device"))
	// ErrMismatch says that the device is another volume than it must be.
	ErrMismatch = failure.Wrap(failure.Conflict, errors.New("another volume answers"))
	// ErrInUse says that somebody has the device open.
	ErrInUse = failure.Wrap(failure.Conflict, errors.New("in use"))
	// ErrAdapter is for an external program that is missing, fails, or answers nonsense.
	ErrAdapter = errors.New("adapter failed")
)

// Host is the machine to attach to. It is read only after construction.
type Host struct {
	// Run runs programs. It must not log on its own: what programs print may
	// repeat a secret. Open wraps it by one that scrubs and logs.
	Run command.Runner
	Log *slog.Logger
	// Root is "/" on a real host; tests have a tree of their own below it,
	// with sys, dev, etc, proc and run.
	Root string
	// Private is a directory below which each volume may keep secrets for
	// programs, mode 0700; Mounts one for mount points. Both are on tmpfs.
	Private, Mounts string
	// Adapters are absolute paths of programs managedvolume-helper-NAME,
	// beside those in VDSM's directory.
	Adapters []string
	// NeedMultipath refuses SCSI volumes without a multipath map, as VDSM does.
	NeedMultipath bool
	// Pause is the time between two looks at what should appear; 0 is a default.
	Pause time.Duration
	// Patience is how long a device may take to appear; 0 is a default.
	Patience time.Duration
	// Find looks for a program; nil: all are there.
	Find func(name string) (path string, err error)
	// Resolve returns the addresses of a name; nil asks the host's resolver.
	Resolve func(ctx context.Context, name string) ([]string, error)
	// InUse says whether somebody has a device open (blockdev.InUse).
	InUse func(path string) (holder string, inUse bool, err error)
	// Opened is InUse without what is made of the device (blockdev.Opened).
	Opened func(path string) (holder string, inUse bool, err error)
	// WriteAttr writes to a file of sysfs; nil is the kernel's.
	WriteAttr func(path, value string) error

	scsi []scsiDevice // see Snapshot
}

// drivers are the connectors by driver_volume_type.
func drivers() map[string]func(*Host, Info) (Connector, error) {
	return map[string]func(*Host, Info) (Connector, error){
		"fibre_channel": newFibreChannel,
		"iscsi":         newISCSI,
		"local":         newLocal,
		"nfs":           newNFS,
		"nvmeof":        newNVMeoF,
		"rbd":           newRBD,
	}
}

// Open returns the connector of a volume. Its errors are ErrUnsupported,
// ErrInvalid and ErrAdapter; nothing is connected.
func (h *Host) Open(volume string, info Info) (Connector, error) {
	host := *h
	host.Run = &scrubber{next: unlogged(h.Run), log: h.Log, words: info.secrets}
	info.volume = volume
	if info.Adapter != "" {
		return newAdapter(&host, info)
	}
	open, ok := drivers()[info.Type]
	if !ok {
		err := failure.New(failure.Precondition, "driver_volume_type %q: %w", info.Type, ErrUnsupported)
		return nil, failure.Hint(err, "name a program for it: \"adapter\": \"NAME\" in the connection_info runs managedvolume-helper-NAME")
	}
	return open(&host, info)
}

// Ready refuses a volume without whose program nothing can be connected. A
// missing one is a failure.Precondition.
func (h *Host) Ready(info Info) error {
	program := map[string]string{"iscsi": "iscsiadm", "nvmeof": "nvme", "rbd": "rbd"}[info.Type]
	if h.Find == nil || info.Adapter != "" || program == "" {
		return nil
	}
	_, err := h.Find(program)
	return err
}

// at is a path of the host.
func (h *Host) at(elem ...string) string {
	return filepath.Join(append([]string{"/", h.Root}, elem...)...)
}
