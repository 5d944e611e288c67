// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import "os"

// pathOf lets a test say where a program of ours is.
func pathOf(variable, builtin string) string {
	if path := os.Getenv(variable); path != "" {
		return path
	}
	return builtin
}
