// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"diskhook/storage/command"
	"diskhook/storage/lvm/lvmtest"
)

// fakeLVM logs its command line and, as an LVM without that volume group
// would, fails; where a script has a volume group, it works on that one. (The
// real lvm is tested in storage/lvm.)
func fakeLVM(args []string) int {
	if os.Getenv(lvmtest.EnvState) != "" {
		return lvmtest.Main(args)
	}
	work := filepath.Dir(os.Getenv("DISKHOOK_ROOT"))
	f, err := os.OpenFile(filepath.Join(work, "shots/lvm"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		fmt.Fprintln(f, command.Quote(args))
		f.Close()
	}
	fmt.Fprintln(os.Stderr, `  Volume group "ovirt-local" not found`)
	fmt.Fprintln(os.Stderr, `  Cannot process volume group ovirt-local`)
	return 5
}

// waitfor FILE TEXT: until the file has the text.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 200 {
		if b, err := os.ReadFile(ts.MkAbs(args[0])); err == nil && strings.Contains(string(b), args[1]) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("%s has no %q", args[0], args[1])
}
