// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"diskhook/storage/failure"
)

// Detached describes a process that outlives its starter: a copy that goes on
// while the hook that asked for it has long vetoed.
type Detached struct {
	// Unit is the transient systemd unit's name without suffix; it doubles as
	// a guard, since systemd refuses a second unit of the same name.
	Unit        string
	Description string
	Argv        []string // absolute program first
	Env         []string // KEY=VALUE beside the scrubbed environment
	// Properties are systemd unit properties, "IOWeight=50".
	Properties []string
	// Log receives stdout and stderr where no systemd journals them; "" drops them.
	Log string
}

// Detach starts d under systemd-run where systemd runs and we are root, else
// in a session of its own with closed stdio. It does not wait for what d does.
// The new process shares no descriptor with us: libvirt and VDSM read a hook's
// pipes to their end and would wait for it.
func Detach(ctx context.Context, run Runner, d Detached) error {
	if underSystemd() {
		args := []string{"--quiet", "--collect", "--no-block", "--unit=" + d.Unit, "--description=" + d.Description}
		for _, p := range d.Properties {
			args = append(args, "--property="+p)
		}
		for _, kv := range append(testEnv(), d.Env...) {
			args = append(args, "--setenv="+kv)
		}
		return startUnit(ctx, run, d.Unit, Cmd{Name: "systemd-run", Args: append(append(args, "--"), d.Argv...)})
	}
	return detachSession(d)
}

// ending bounds how long a unit whose process has gone may take to go itself: what its
// ExecStopPost does may take LVM some seconds.
const ending = time.Minute

// startUnit has systemd start a transient unit. It waits for one of that name that is
// ending; one that works is a failure.Conflict.
func startUnit(ctx context.Context, run Runner, unit string, start Cmd) error {
	for until := time.Now().Add(ending); ; {
		_, err := run.Run(ctx, start)
		var exit *Error
		if !errors.As(err, &exit) || !strings.Contains(exit.Stderr, "was already loaded") {
			return err
		}
		shown, err := run.Run(ctx, Cmd{Name: "systemctl", Args: []string{"show", "--property=ActiveState", "--value", unit + ".service"}})
		if err != nil {
			return err
		}
		state := strings.TrimSpace(string(shown.Stdout))
		if state == "active" || state == "activating" || time.Now().After(until) {
			err := failure.New(failure.Conflict, "unit %s: there is one already (%s)", unit, state)
			return failure.Hint(err, "`systemctl status %s` shows what it does: run the verb again when it has ended", unit)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func underSystemd() bool {
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	return err == nil && os.Geteuid() == 0 && testDirs() == nil
}

// LogCommand is the command that shows what the process said.
func (d Detached) LogCommand() string {
	if underSystemd() {
		return Quote([]string{"journalctl", "-u", d.Unit})
	}
	return Quote([]string{"cat", d.Log})
}

func detachSession(d Detached) error {
	proc := exec.Command(d.Argv[0], d.Argv[1:]...)
	proc.Env = append(append(baseEnv(), testEnv()...), d.Env...)
	proc.Dir = "/"
	proc.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.Log != "" {
		log, err := os.OpenFile(d.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return fmt.Errorf("%s: log: %w", d.Unit, err)
		}
		defer log.Close()
		proc.Stdout, proc.Stderr = log, log
	}
	if err := proc.Start(); err != nil {
		return fmt.Errorf("%s: start: %w", d.Unit, err)
	}
	// Reaped if it ends before we do, so that a long-lived starter keeps no zombie.
	go func() { _ = proc.Wait() }()
	return nil
}
