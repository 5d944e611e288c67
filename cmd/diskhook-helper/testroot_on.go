// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"os"

	"diskhook/storage/host"
)

func layout() host.Layout { return host.Layout{Root: os.Getenv("DISKHOOK_ROOT")} }

func programPath() string {
	if path := os.Getenv("DISKHOOK_PROGRAM"); path != "" {
		return path
	}
	return program
}
