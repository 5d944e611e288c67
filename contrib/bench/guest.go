// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// inGuest runs a part of this program in the test guest, where device-mapper
// and LVM are real. /dev/vdb and /dev/vdc are empty disks there. Emulation slows down both
// sides of a comparison, though not quite by the same factor.
func inGuest(part string) func(context.Context, io.Writer) error {
	return func(ctx context.Context, out io.Writer) error {
		work, err := os.MkdirTemp("", "diskhook-bench.")
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		payload := filepath.Join(work, "payload")

		build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(payload, "bench"), "./contrib/bench")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build for the guest: %w", err)
		}

		guest := exec.CommandContext(ctx, "contrib/testguest/run",
			"--payload", payload, "--disk-size", "12G", "--disk", filepath.Join(work, "pool"), "--disk", filepath.Join(work, "images"), "--timeout", "1200",
			"--", "./bench", part)
		guest.Stdout, guest.Stderr = out, os.Stderr
		return guest.Run()
	}
}
