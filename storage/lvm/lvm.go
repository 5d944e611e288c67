// SPDX-License-Identifier: Apache-2.0

// Package lvm is a typed driver of lvm(8): one method per verb, one program
// run per call, no state and no policy. What a tag means, which volume may be
// removed and how much space must stay free is decided by its callers.
//
// Reading is one `lvm fullreport` of one volume group (Report), because a
// report of everything costs what a report of one volume costs. Writing is
// one command per call; what is idempotent says so. For a dry run give the
// driver a Runner that records.
//
// LVM exits 5 for nearly every failure, so failures are told apart by what it
// wrote to stderr: the sentinels of this package and the kinds of package
// failure are found with errors.Is, the *command.Error with errors.As.
//
// A command that changes something is not killed when the context ends, only
// after LVM.Timeout: a kill between LVM's metadata commit and its resume
// would leave a device suspended, and everybody who touches it hanging.
//
// Where device-mapper cannot be asked (no driver, global/activation=0) nobody
// knows what is active or open. That is nil here, never false.
package lvm

import (
	"context"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// defaultTimeout bounds one command when LVM.Timeout is 0.
const defaultTimeout = 60 * time.Second

// LVM runs lvm(8). Its fields are read only after construction; methods may
// be called at the same time, LVM's own VG locks order them.
type LVM struct {
	Run command.Runner

	// Devices, when set, are the only devices LVM may look at: absolute paths
	// of nodes or of links to them. Empty means all but what thin clusters
	// consist of, even those that the host's filter or devices file hides,
	// since oVirt hides local volume groups. A global_filter of the host stays
	// in force.
	Devices []string

	// Timeout bounds each command, the wait for LVM's locks included.
	Timeout time.Duration

	// Config are further terms of --config, each in lvm.conf(5) syntax:
	// "global { activation=0 }" or "backup/archive=0".
	Config []string
}

// thinClusters rejects the devices that package thin/member names: a guest's volume groups
// lie in them, and an LVM that reads one while it is suspended hangs, which one that was
// interrupted in a hand-over stays until diskhook, which needs LVM for it, has gone on.
const thinClusters = `"r|^/dev/mapper/dh-[^+]*[+]|"`

// config is the value of --config (lvm.conf(5), "section { key=value }").
//
//	use_devicesfile=0  EL9 sees only devices in its devices file otherwise
//	hints="none"       hints are kept per filter; ours and the host's would
//	                   overwrite each other's on every command
//	filter             "a|REGEX|" accepts, "r|REGEX|" rejects: the first that matches
//	                   one of a device's names decides, and without any it is accepted
func (l *LVM) config() (string, error) {
	filter := thinClusters
	if len(l.Devices) > 0 {
		var terms []string
		for _, dev := range l.Devices {
			if !devicePath(dev) {
				return "", failure.New(failure.Usage, "lvm device %q: not an absolute device path", dev)
			}
			terms = append(terms, `"a|^`+literal(dev)+`$|"`)
		}
		filter = strings.Join(append(terms, `"r|.*|"`), ", ")
	}
	terms := append([]string{`devices { use_devicesfile=0 hints="none" filter=[` + filter + `] }`}, l.Config...)
	return strings.Join(terms, " "), nil
}

// devicePath admits what needs no quoting in lvm.conf and no backslash in a
// filter's expression.
func devicePath(s string) bool {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/_-+.:@%=,", r)
	}
	return len(s) > 1 && len(s) < 4096 && s[0] == '/' && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0
}

// literal makes LVM's regular expressions match path itself. A bracket needs
// no second level of escapes, as a backslash in a quoted string would.
func literal(path string) string {
	return strings.NewReplacer(".", "[.]", "+", "[+]").Replace(path)
}

// read runs a verb that changes nothing. It ends with ctx.
func (l *LVM) read(ctx context.Context, verb string, args ...string) (command.Result, error) {
	config, err := l.config()
	if err != nil {
		return command.Result{}, err
	}
	timeout := l.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	return l.Run.Run(ctx, command.Cmd{
		Name:    "lvm",
		Args:    append([]string{verb, "--config", config}, args...),
		Timeout: timeout,
	})
}

// change runs a verb that changes something. Once begun it ends by itself or
// by the timeout, not with ctx.
func (l *LVM) change(ctx context.Context, verb string, args ...string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := l.read(context.WithoutCancel(ctx), verb, append([]string{"-y"}, args...)...)
	return err
}

// checkNames refuses names outside LVM's grammar. They stand in argv as
// VG/LV, so a name must neither begin an option nor contain a slash; an empty
// one would turn a command for a volume into one for its whole group.
func checkNames(vg string, names ...string) error {
	if !host.LVMName(vg) {
		return failure.New(failure.Usage, "vg %q: not a name that LVM takes", vg)
	}
	for _, name := range names {
		if !host.LVMName(name) {
			return failure.New(failure.Usage, "vg %s: lv %q: not a name that LVM takes", vg, name)
		}
	}
	return nil
}

// qualified returns VG/LV for each name, the one form that every verb takes.
func qualified(vg string, names []string) []string {
	paths := make([]string, len(names))
	for i, name := range names {
		paths[i] = vg + "/" + name
	}
	return paths
}
