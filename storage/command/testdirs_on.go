// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package command

import (
	"os"
	"strings"
)

// testDirs lets a test put programs that pose as lvm or qemu-img first.
func testDirs() []string {
	if dirs := os.Getenv("DISKHOOK_TOOLS"); dirs != "" {
		return strings.Split(dirs, ":")
	}
	return nil
}

// testEnv is what such programs need to see of the test's environment:
// nothing, unless the test has moved the root.
func testEnv() []string {
	if os.Getenv("DISKHOOK_ROOT") == "" {
		return nil
	}
	var env []string
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "DISKHOOK_") || strings.HasPrefix(kv, "WORK=") || strings.HasPrefix(kv, "LVM_SYSTEM_DIR=") {
			env = append(env, kv)
		}
	}
	return env
}
