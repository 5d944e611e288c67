// SPDX-License-Identifier: Apache-2.0

//go:build integration

// Package sandbox runs the self-test of the libvirtd sandbox as a part of its tier.
package sandbox

import (
	"os/exec"
	"testing"
)

func TestSandbox(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "./selftest").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("selftest: %v", err)
	}
}
