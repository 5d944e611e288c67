// SPDX-License-Identifier: Apache-2.0

//go:build integration

// Package demo tests that `make demo` shows what it claims, and leaves no trace.
package demo

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDemo finds what a reader is meant to see, in its order.
func TestDemo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root for the virtual machine: run as root, or set SKIP_INTEGRATION=1")
	}
	before := folders(t)
	out, err := exec.CommandContext(t.Context(), "./demo").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rest := string(out)
	for _, text := range []string{
		"+    <dh:disks xmlns:dh='urn:diskhook:1'",
		"-      <source file='",
		"disk vda: make and fill a copy",
		"% of 512 MiB", // progress of the first start
		"Images are identical.",
		"the data of the guest",
		"its copy process died",
		"unfinished, nobody works on it", "the next start goes on with it",
		"% of 512 MiB",
		"Images are identical.",
		"virsh -q start vm3", "running",
		"Images are identical.",
		"the copy is reused", "running",
		"No process, mount or file of the demo is left",
	} {
		_, after, found := strings.Cut(rest, text)
		if !found {
			t.Fatalf("%q is missing, or not in its place:\n%s", text, out)
		}
		rest = after
	}
	unchanged(t, before)
}

// TestInterrupted ends the demo in the middle of a copy.
func TestInterrupted(t *testing.T) {
	before := folders(t)
	demo := exec.CommandContext(t.Context(), "./demo")
	var out strings.Builder
	demo.Stdout, demo.Stderr = &out, &out
	demo.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	for range 1200 {
		if status, _ := filepath.Glob("/var/tmp/diskhook-demo.*/host/run/diskhook/status/*/vda.json"); len(status) > 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	// As a terminal does it: to everything in the foreground.
	if err := syscall.Kill(-demo.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := demo.Wait(); err == nil {
		t.Errorf("it ended well:\n%s", out.String())
	}
	unchanged(t, before)
	if left, _ := exec.CommandContext(t.Context(), "pgrep", "-af", "/var/tmp/diskhook-demo").CombinedOutput(); len(left) > 0 {
		t.Errorf("left running: %s", left)
	}
}

func folders(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/var/tmp/diskhook-demo.*")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func unchanged(t *testing.T, before string) {
	t.Helper()
	if after := folders(t); after != before {
		t.Errorf("left behind: %q, before it was %q", after, before)
	}
}
