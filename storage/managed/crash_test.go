// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package managed_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"diskhook/storage/managed/connector/connectortest"
)

// passed returns every failpoint that a verb passes, in order, set to kill.
func passed(t *testing.T, prepare func(*testing.T) *home, verb string) []string {
	t.Helper()
	h := prepare(t)
	log := h.Dir + "/failpoints"
	if out, err := h.process(verb, "v1", "DISKHOOK_FAILPOINT_LOG="+log); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(log)
	must(t, err)
	var points []string
	times := map[string]int{}
	for _, name := range strings.Fields(string(b)) {
		times[name]++
		points = append(points, fmt.Sprintf("%s=kill@%d", name, times[name]))
	}
	return points
}

// everywhere kills the verb at each failpoint that it passes, and calls after.
func everywhere(t *testing.T, least int, prepare func(*testing.T) *home, verb string, after func(*testing.T, *home)) {
	points := passed(t, prepare, verb)
	if len(points) < least {
		t.Fatalf("only %d failpoints: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			h := prepare(t)
			if out, err := h.process(verb, "v1", "DISKHOOK_FAILPOINT="+point); err == nil {
				t.Fatalf("it was not killed: %s", out)
			}
			after(t, h)
		})
	}
}

func defined(connection string) func(*testing.T) *home {
	return func(t *testing.T) *home {
		h := newHome(t)
		h.define("v1", connection)
		return h
	}
}

func attached(connection string) func(*testing.T) *home {
	return func(t *testing.T) *home {
		h := defined(connection)(t)
		_, err := h.fulfil("v1", domain)
		must(t, err)
		return h
	}
}

// least is how many steps of an attach and a detach may be interrupted.
func least() map[string][2]int {
	return map[string][2]int{"iscsi": {10, 6}, "fibre_channel": {7, 4}, "nvmeof": {5, 3}, "rbd": {6, 3}, "nfs": {5, 3}}
}

// An attach that was killed at any step is finished by the same call.
func TestKilledAttachIsFinishedByTheNext(t *testing.T) {
	for name, connection := range kinds() {
		t.Run(name, func(t *testing.T) {
			everywhere(t, least()[name][0], defined(connection), "attach", func(t *testing.T, h *home) {
				_, err := h.fulfil("v1", domain)
				must(t, err)
				h.path("v1")
				must(t, h.Release(t.Context(), "v1", domain))
				h.clean()
			})
		})
	}
}

// An attach that was killed at any step is undone by a detach, by the release
// that comes after a failed start, and after a reboot by Reconcile.
func TestKilledAttachIsUndone(t *testing.T) {
	for name, connection := range kinds() {
		for how, undo := range map[string]func(*testing.T, *home){
			"detach":  func(t *testing.T, h *home) { must(t, h.Detach(t.Context(), "v1", domain)) },
			"release": func(t *testing.T, h *home) { must(t, h.Release(t.Context(), "v1", domain)) },
			"reboot": func(t *testing.T, h *home) {
				must(t, h.Reboot())
				_, err := h.Reconcile(t.Context(), true)
				must(t, err)
			},
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				everywhere(t, least()[name][0], defined(connection), "attach", func(t *testing.T, h *home) {
					undo(t, h)
					h.clean()
				})
			})
		}
	}
}

// A detach that was killed at any step is finished by the next, and the volume
// can be attached again before that, too.
func TestKilledDetachIsFinishedByTheNext(t *testing.T) {
	for name, connection := range kinds() {
		t.Run(name, func(t *testing.T) {
			everywhere(t, least()[name][1], attached(connection), "release", func(t *testing.T, h *home) {
				must(t, h.Release(t.Context(), "v1", domain))
				must(t, h.Detach(t.Context(), "v1", domain)) // the row may be gone, and the claim with it
				h.clean()
			})
		})
		t.Run(name+" attached again", func(t *testing.T) {
			everywhere(t, least()[name][1], attached(connection), "detach", func(t *testing.T, h *home) {
				_, err := h.fulfil("v1", domain)
				must(t, err)
				h.path("v1")
				must(t, h.Release(t.Context(), "v1", domain))
				h.clean()
			})
		})
	}
}

// An attach that fails at any step takes away what it connected.
func TestFailedAttachLeavesNothing(t *testing.T) {
	for name, connection := range kinds() {
		t.Run(name, func(t *testing.T) {
			for _, point := range passed(t, defined(connection), "attach") {
				h := defined(connection)(t)
				out, err := h.process("attach", "v1", "DISKHOOK_FAILPOINT="+strings.ReplaceAll(point, "=kill", "=error"))
				if err == nil || !strings.Contains(out, "injected") || strings.Contains(out, "canary") {
					t.Errorf("%s: %v %s", point, err, out)
				}
				if strings.HasPrefix(point, "attach.recorded") {
					continue // nothing is connected, and the row is for the next call
				}
				h.clean()
			}
		})
	}
}

// What cannot be taken away after a failed attach stays known.
func TestWhatCouldNotBeUndoneStaysKnown(t *testing.T) {
	h := defined(iscsi)(t)
	h.change(func(s *connectortest.Storage) { s.Open = []string{"/dev/dm-0"} })
	out, err := h.process("attach", "v1", "DISKHOOK_FAILPOINT=attach.connected=error")
	if err == nil || !strings.Contains(out, "what was connected stays") || !strings.Contains(out, "run `diskhook volume detach v1`") {
		t.Errorf("%v %s", err, out)
	}
	if !strings.Contains(h.info(), `"vol_id":"v1"`) {
		t.Error(h.info())
	}
	h.change(func(s *connectortest.Storage) { s.Open = nil })
	must(t, h.Detach(t.Context(), "v1", domain))
	h.clean()
}

// process runs a verb in a process of its own.
func (h *home) process(verb, id string, env ...string) (string, error) {
	exe, err := os.Executable()
	must(h.t, err)
	cmd := exec.Command(exe, "managed", verb, h.Dir, id)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
