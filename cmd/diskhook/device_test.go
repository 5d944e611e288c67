// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// condition adds [root]: only root makes devices.
func condition(name string) (bool, error) {
	if name == "root" {
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// device FILE VARIABLE: a block device with the content of a file, which may be
// the source of a disk.
func device(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: device FILE VARIABLE")
	}
	out, err := exec.Command("losetup", "-f", "--show", ts.MkAbs(args[0])).Output()
	ts.Check(err)
	path := strings.TrimSpace(string(out))
	ts.Defer(func() { ts.Check(exec.Command("losetup", "-d", path).Run()) })
	ts.Setenv(args[1], path)
	settings := ts.MkAbs("root/etc/diskhook/diskhook.toml")
	text := strings.Replace(ts.ReadFile(settings), "roots = [", fmt.Sprintf("roots = [%q, ", path), 1)
	ts.Check(os.WriteFile(settings, []byte(text), 0o644))
}
