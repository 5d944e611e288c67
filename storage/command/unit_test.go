// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"diskhook/storage/failure"
)

// units is a systemd that has a unit of the name already; states are those that it is
// in, one after the other, each time that somebody asks.
type units struct {
	states []string
	asked  int
}

func (u *units) Run(_ context.Context, cmd Cmd) (Result, error) {
	if cmd.Name == "systemctl" {
		state := u.states[min(u.asked, len(u.states)-1)]
		u.asked++
		return Result{Stdout: []byte(state + "\n")}, nil
	}
	if u.asked < len(u.states) {
		return Result{}, &Error{Argv: cmd.Argv(), Code: 1, Stderr: "Failed to start transient service unit: Unit work.service was already loaded or has a fragment file."}
	}
	return Result{}, nil
}

// A unit that is still ending is waited for; one that works, or does not end, is told of
// in one line.
func TestUnitThatIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		states []string
		told   bool
	}{
		"none":          {nil, false},
		"ending":        {[]string{"deactivating", "deactivating", "inactive"}, false},
		"working":       {[]string{"deactivating", "active", "never"}, true},
		"ends never":    {make([]string, 10_000), true},
		"begins anyway": {[]string{"activating", "never"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := &units{states: c.states}
				err := startUnit(t.Context(), u, "work", Cmd{Name: "systemd-run", Args: []string{"--unit=work"}})
				if !c.told {
					if err != nil || u.asked != len(c.states) {
						t.Errorf("%v after %d questions", err, u.asked)
					}
					return
				}
				if !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "unit work: there is one already") || failure.HintOf(err) == "" {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

// What else systemd refuses is told as it is.
func TestUnitThatIsRefused(t *testing.T) {
	want := &Error{Code: 1, Stderr: "Failed to connect to bus"}
	err := startUnit(t.Context(), refusing{want}, "work", Cmd{Name: "systemd-run"})
	if !errors.Is(err, want) {
		t.Error(err)
	}
}

type refusing struct{ err error }

func (r refusing) Run(context.Context, Cmd) (Result, error) { return Result{}, r.err }
