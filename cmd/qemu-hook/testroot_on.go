// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"os"
	"strings"
)

// root is where tests move all paths.
func root() string { return os.Getenv("DISKHOOK_ROOT") }

// testEnv forwards what tests steer diskhook with.
func testEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "DISKHOOK_") {
			env = append(env, kv)
		}
	}
	return env
}

func programPath() string {
	if path := os.Getenv("DISKHOOK_PROGRAM"); path != "" {
		return path
	}
	return program
}
