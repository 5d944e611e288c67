// SPDX-License-Identifier: Apache-2.0

// Package doctor looks whether a host is ready for diskhook, and says how to
// make it so.
//
// A check has a name, asks one question, and answers with findings: ok, warn
// (it works, but not for everything, or not for long) or fail (a start would be
// refused, or worse, a hook would not be called). Each finding that is not ok
// names the command or setting that mends it. Checks only look: nothing is
// created, started or changed. One that cannot look says so as a warning; none
// stops the others.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// Level says how bad a finding is.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is the answer of a check.
type Finding struct {
	Check   string `json:"check"`
	Level   Level  `json:"level"`
	Message string `json:"message"`
	Fix     string `json:"fix"` // a command or a setting; "" if it is ok
}

// Host is what is looked at.
type Host struct {
	Layout host.Layout
	Config host.Config
	// ConfigErr is why the configuration is not what its file says.
	ConfigErr error
	Run       command.Runner
	Log       *slog.Logger
	Local     *localdisk.Service
	// DomainProgram is the path of diskhook-domain.
	DomainProgram string
	// Proc is where processes are looked up, /proc.
	Proc string
}

// at is a path of the system, below the moved root if there is one.
func (h *Host) at(path string) string { return filepath.Join("/", h.Layout.Root, path) }

// lvmUsed says whether local copies live in LVM by default.
func (h *Host) lvmUsed() bool { return strings.HasPrefix(h.Config.Local.Backend, "lvm") }

type check struct {
	name string
	look func(context.Context, *Host) []Finding
}

// checks are made, and told, in this order.
func checks() []check {
	return []check{
		{"configuration", configuration},
		{"machine-id", machineID},
		{"programs", programs},
		{"libvirt", libvirtAccess},
		{"storage", storage},
		{"directories", directories},
		{"libvirt-hook", libvirtHook},
		{"libvirt-reload", libvirtReload},
		{"confinement", confinement},
		{"vdsm", vdsm},
		{"copies", copies},
		{"quorum", replicaSets},
		{"volumes", managedVolumes},
	}
}

// patience bounds one check.
const patience = 30 * time.Second

// Examine makes all checks.
func Examine(ctx context.Context, h *Host) []Finding {
	var all []Finding
	for _, c := range checks() {
		within, cancel := context.WithTimeout(ctx, patience)
		for _, f := range c.look(within, h) {
			f.Check = c.name
			all = append(all, f)
		}
		cancel()
	}
	return all
}

func ok(format string, args ...any) Finding {
	return Finding{Level: OK, Message: fmt.Sprintf(format, args...)}
}

func warn(fix, format string, args ...any) Finding {
	return Finding{Level: Warn, Message: fmt.Sprintf(format, args...), Fix: fix}
}

func fail(fix, format string, args ...any) Finding {
	return Finding{Level: Fail, Message: fmt.Sprintf(format, args...), Fix: fix}
}

// failed is the finding of an error that carries its own way out.
func failed(err error) Finding {
	return fail(failure.HintOf(err), "%s", failure.OneLine(err.Error()))
}

func configuration(_ context.Context, h *Host) []Finding {
	if h.ConfigErr != nil {
		return []Finding{failed(h.ConfigErr)}
	}
	path := h.Layout.Config()
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{ok("no %s, the defaults hold", path)}
	case err != nil:
		return []Finding{warn("run doctor as root", "%v", err)}
	case st.Mode()&0o022 != 0:
		return []Finding{fail("chmod go-w "+path, "%s: others than its owner may write to it, and so steer what diskhook does as root", path)}
	case h.Layout.Root == "" && owner(st) != 0:
		return []Finding{fail("chown root "+path, "%s belongs to uid %d, not to root", path, owner(st))}
	}
	return []Finding{ok("%s is fine", path)}
}

func machineID(_ context.Context, h *Host) []Finding {
	id, err := h.Layout.MachineID()
	if err != nil {
		return []Finding{fail("systemd-machine-id-setup", "%v", err)}
	}
	return []Finding{ok("%s", id)}
}

func copies(ctx context.Context, h *Host) []Finding {
	entries, err := h.Local.List(ctx)
	if err != nil {
		return []Finding{failed(err)}
	}
	var found []Finding
	for _, e := range entries {
		if e.Problem != "" {
			found = append(found, warn("diskhook local list", "domain %s: disk %s: %s", cmp.Or(e.DomainName, e.Domain), e.Target, e.Matter()))
		}
	}
	if len(found) == 0 {
		found = append(found, ok("%d local copies, all well", len(entries)))
	}
	return found
}
