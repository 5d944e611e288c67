// SPDX-License-Identifier: Apache-2.0

//go:build e2e

// Package udev tests the rule, and the modes of /run/diskhook, where udev, LVM
// and systemd-tmpfiles are real: in the test guest.
package udev

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestOwners finds oVirt's volumes owned by vdsm:qemu as soon as they are
// active, on a host of oVirt only, and everything else left as it was.
func TestOwners(t *testing.T) {
	payload := t.TempDir()
	for _, file := range []string{
		"61-diskhook-local.rules", "testdata/owners",
		"../tmpfiles/diskhook.conf", "../tmpfiles/diskhook-vdsm.conf",
	} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(payload, filepath.Base(file)), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	guest := exec.CommandContext(t.Context(), "../testguest/run",
		"--payload", payload, "--disk-size", "512M", "--disk", filepath.Join(t.TempDir(), "disk"), "--timeout", "300",
		"--", "./owners")
	var stderr bytes.Buffer
	guest.Stderr = &stderr
	out, err := guest.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, &stderr)
	}

	want := `without root:disk /dev/ovirt-local/00000000-0000-4000-8000-000000000001
without root:disk /dev/ovirt-local/other
with vdsm:qemu /dev/ovirt-local/00000000-0000-4000-8000-000000000001
with vdsm:qemu /dev/ovirt-local/00000000-0000-4000-8000-000000000002
with root:disk /dev/ovirt-local/other
with root:disk /dev/mapper/ovirt--local-pool0
with root:disk /dev/mapper/ovirt--local-pool0-tpool
with root:disk /dev/mapper/ovirt--local-pool0_tdata
with root:disk /dev/mapper/ovirt--local-pool0_tmeta
vdsm locks
daemon does not
`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("(-want +got)\n%s\n%s", diff, &stderr)
	}
}
