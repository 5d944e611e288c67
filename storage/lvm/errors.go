// SPDX-License-Identifier: Apache-2.0

package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// What LVM failed for, found with errors.Is beside their kind.
var (
	ErrNoVG     = failure.Wrap(failure.Precondition, errors.New("no such volume group"))
	ErrNoLV     = failure.Wrap(failure.NotFound, errors.New("no such logical volume"))
	ErrNoPool   = failure.Wrap(failure.Precondition, errors.New("no such thin pool"))
	ErrExists   = failure.Wrap(failure.Conflict, errors.New("the name is taken"))
	ErrInUse    = failure.Wrap(failure.Conflict, errors.New("the volume is in use"))
	ErrSameName = failure.Wrap(failure.Conflict, errors.New("several volume groups have this name"))
	ErrExported = failure.Wrap(failure.Precondition, errors.New("the volume group is exported"))
	ErrForeign  = failure.Wrap(failure.Precondition, errors.New("the volume group belongs to another host"))
	// ErrElsewhere: another host that shares the group has the volume active.
	ErrElsewhere = failure.Wrap(failure.Conflict, errors.New("the volume is active on another host"))
	// ErrOtherWay: this host has the volume active, exclusively or not, and was asked
	// for the other; lvmlockd converts no lock.
	ErrOtherWay = failure.Wrap(failure.Conflict, errors.New("the volume is active in another way"))
	// ErrNoDeviceMapper: the kernel lacks the driver or a target.
	ErrNoDeviceMapper = failure.Wrap(failure.Precondition, errors.New("device-mapper does not answer"))
	// ErrLocked: another command held the group's lock for too long.
	ErrLocked = failure.Wrap(failure.Temporary, errors.New("the volume group is locked"))

	errNoSpace   = failure.Wrap(failure.NoSpace, errors.New("no space"))
	errNotRoot   = failure.Wrap(failure.Precondition, errors.New("not permitted"))
	errRefused   = failure.Wrap(failure.Usage, errors.New("LVM refuses the name or the size"))
	errUnchanged = errors.New("nothing to change")
)

// message is what LVM writes to stderr (LC_ALL=C) and what it means. All of
// its parts occur in one line, in this order.
type message struct {
	parts []string
	means error
	hint  string
}

// messages are tried in order: causes stand before what they bring about.
var messages = []message{
	{[]string{"Multiple VGs found with the same name"}, ErrSameName, "rename one with `vgrename UUID NEW-NAME`, or set [lvm] devices in diskhook.toml"},
	{[]string{"Permission denied"}, errNotRoot, "run it as root, or through diskhook-helper"},
	{[]string{"Cannot access VG", "with system ID"}, ErrForeign, "run it on the host that owns the group; `vgs --foreign -o+systemid` names it"},
	{[]string{"is exported"}, ErrExported, "import the group with `vgimport`"},
	{[]string{"LV locked by other host"}, ErrElsewhere, "`lvchange -an` it there, or shut down what uses it"},
	{[]string{"LV is already locked with incompatible mode"}, ErrOtherWay, "deactivate it first with `lvchange -an`"},
	{[]string{"lock start in progress"}, ErrLocked, lockdHint},
	{[]string{"lock failed"}, ErrLocked, lockdHint},
	{[]string{"Can't get lock for"}, ErrLocked, lockHint},
	{[]string{"due to failed lock"}, ErrLocked, lockHint},
	{[]string{"Giving up waiting for lock"}, ErrLocked, lockHint},
	{[]string{"Volume group", "not found"}, ErrNoVG, "bring its device back (`pvs -a`); if a filter hides it, set [lvm] devices in diskhook.toml"},
	{[]string{"while PVs are missing"}, ErrPartial, missingHint},
	{[]string{"while physical volumes are missing"}, ErrPartial, missingHint},
	{[]string{"target(s) not detected in your kernel"}, ErrNoDeviceMapper, driverHint},
	{[]string{"without using device-mapper kernel driver"}, ErrNoDeviceMapper, driverHint},

	{[]string{"already exists in"}, ErrExists, ""},
	{[]string{"name already in use"}, ErrExists, ""},
	{[]string{"contains a filesystem in use"}, ErrInUse, "unmount it; `lsblk` shows where"},
	{[]string{"is used by another device"}, ErrInUse, "`lsblk` shows the device on top"},
	{[]string{"Logical volume", " in use"}, ErrInUse, "stop what holds it; `fuser -v` on its device names it"},

	{[]string{"nsufficient free space"}, errNoSpace, spaceHint},
	{[]string{"Insufficient suitable", "extents"}, errNoSpace, spaceHint},
	{[]string{"free space in thin pool", "reached threshold"}, errNoSpace, poolHint},
	{[]string{"Free space in pool", "above threshold"}, errNoSpace, poolHint},

	{[]string{"Pool ", "not found in Volume group"}, ErrNoPool, "make it with `lvcreate --type thin-pool`, or set [local] pool in diskhook.toml"},
	{[]string{"is not a thin pool"}, ErrNoPool, "set [local] pool in diskhook.toml to a thin pool"},
	{[]string{"Failed to find logical volume"}, ErrNoLV, ""},
	{[]string{"not found in volume group"}, ErrNoLV, ""},
	{[]string{"not found in Volume group"}, ErrNoLV, ""},

	{[]string{"New size", "matches existing size"}, errUnchanged, ""},
	{[]string{"New size given", "not larger than existing size"}, errUnchanged, ""},
	{[]string{"is already read only"}, errUnchanged, ""},
	{[]string{"is already writable"}, errUnchanged, ""},
	{[]string{"Size is not a multiple of 512"}, errRefused, ""},
	{[]string{"are reserved. Please choose a different"}, errRefused, ""},

	// Last, as it accompanies commands that fail for another reason.
	{[]string{"Failure to communicate with kernel device-mapper driver"}, ErrNoDeviceMapper, driverHint},
}

const (
	lockHint    = "see who holds it with `fuser -v /run/lock/lvm/*`, then try again"
	lockdHint   = "see `lvmlockctl -i` and `systemctl status lvmlockd`; `vgchange --lock-start` joins the group's lockspace"
	missingHint = "bring the missing device back; `pvs -o+pv_missing` names it"
	driverHint  = "load it with `modprobe -a dm_mod dm_thin_pool`"
	spaceHint   = "make room, or add a device with `vgextend`; `vgs` shows what is free"
	poolHint    = "extend the pool with `lvextend`; `lvs` shows how full it is"
)

// explain names the object and the verb and classifies err by what LVM wrote.
// The *command.Error stays reachable. A failure that no message explains is a
// plain one: exit 5 alone means nothing.
func explain(object string, err error) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("%s: %w", object, err)
	var failed *command.Error
	switch {
	case !errors.As(err, &failed):
		return wrapped
	case failed.Code < 0 && errors.Is(err, context.DeadlineExceeded):
		return failure.Hint(failure.Wrap(failure.Temporary, wrapped),
			"LVM waits for a lock or a disk: see `fuser -v /run/lock/lvm/*` and `dmesg`; [lvm] timeout in diskhook.toml bounds the wait")
	case failed.Code < 0:
		return wrapped
	}
	for _, m := range messages {
		if m.in(failed.Stderr) {
			wrapped = &explained{wrapped, m.means}
			if m.hint != "" {
				return failure.Hint(wrapped, "%s", m.hint)
			}
			return wrapped
		}
	}
	return wrapped
}

// explained carries a sentinel beside the error; the text is the error's.
type explained struct {
	error
	means error
}

func (e *explained) Unwrap() []error { return []error{e.means, e.error} }

// in says whether a line of stderr has all parts in order. A line that only
// warns explains no failure.
func (m message) in(stderr string) bool {
	for line := range strings.Lines(stderr) {
		if strings.Contains(line, "WARNING:") {
			continue
		}
		found := true
		for _, part := range m.parts {
			_, rest, ok := strings.Cut(line, part)
			if found = ok; !ok {
				break
			}
			line = rest
		}
		if found {
			return true
		}
	}
	return false
}
