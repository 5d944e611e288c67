// SPDX-License-Identifier: Apache-2.0

// Package vdsm tests what stands in for files of VDSM and os-brick.
package vdsm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestShim runs the helper as releases of VDSM do, through Python and by
// itself: diskhook gets the verb and standard input, and no environment that
// could steer it.
func TestShim(t *testing.T) {
	dir := t.TempDir()
	diskhook := filepath.Join(dir, "diskhook")
	if err := os.WriteFile(diskhook, []byte("#!/bin/sh\necho \"$*\"; echo \"${DISKHOOK_ROOT-unset} $PATH\"; cat; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	shim, err := os.ReadFile("managedvolume-helper")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(shim), `"/usr/bin/diskhook"`) != 1 {
		t.Fatal("the shim does not name the installed program once")
	}
	helper := filepath.Join(dir, "managedvolume-helper")
	if err := os.WriteFile(helper, []byte(strings.Replace(string(shim), "/usr/bin/diskhook", diskhook, 1)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{helper, "attach"}, {"/usr/bin/python3", helper, "attach"}} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = []string{"DISKHOOK_ROOT=/evil", "PATH=/evil"}
		cmd.Stdin = strings.NewReader(`{"connection_info":{}}`)
		out, _ := cmd.Output() // the code is looked at below
		want := "volume helper attach\nunset /usr/sbin:/usr/bin:/sbin:/bin\n" + `{"connection_info":{}}`
		if string(out) != want || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("%q: %q, code %d", argv, out, cmd.ProcessState.ExitCode())
		}
	}
}

// TestStandIn finds a package that Python can import and that has nothing.
func TestStandIn(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-B", "-c", "import os_brick; print([n for n in dir(os_brick) if n[0] != '_'])")
	cmd.Dir = "."
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "[]\n" {
		t.Errorf("%v: %s", err, out)
	}
}
