// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// Package testguest runs the self-test of the test guest as a part of its tier.
package testguest

import (
	"os/exec"
	"testing"
)

func TestGuest(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "./selftest").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("selftest: %v", err)
	}
}
