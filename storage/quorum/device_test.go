// SPDX-License-Identifier: Apache-2.0

//go:build testroot && integration

package quorum_test

import (
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/quorum"
)

// A set that was filled from a block device takes the device's place only after
// a comparison: the device does not tell that it was written to.
func TestDiskOnADevice(t *testing.T) {
	if os.Getenv("SKIP_LOOP") == "1" {
		t.Skip("SKIP_LOOP=1")
	}
	w := newWorld(t)
	device := strings.TrimSpace(w.tool("losetup", "--find", "--show", w.flat))
	t.Cleanup(func() { w.tool("losetup", "--detach", device) })
	w.Config.Paths.Roots = append(w.Config.Paths.Roots, "/dev")
	b := w.building()
	b.From = []imagecheck.Layer{{Path: device, Format: "raw"}}
	_, err := w.Build(t.Context(), b)
	must(t, err)
	fits := func(use quorum.Use) error {
		_, err := w.Fits(t.Context(), "db", use, quorum.Former{Chain: b.From})
		return err
	}
	w.refused(fits(vda), failure.Precondition, "a block device does not tell whether it was written to", "diskhook quorum verify --against "+device+" --against-format raw db")

	_, err = w.VerifyAgainst(t.Context(), "db", b.From, false, nil)
	must(t, err)
	w.refused(fits(vda), failure.Precondition, "a block device does not tell") // nothing was noted
	v, err := w.VerifyAgainst(t.Context(), "db", b.From, true, nil)
	must(t, err)
	if !v.Equal() {
		t.Errorf("%+v", v)
	}
	must(t, fits(vda))

	w.tool("qemu-io", "-f", "raw", "-c", "write -q -P 0x44 5M 64k", device)
	v, err = w.VerifyAgainst(t.Context(), "db", b.From, true, nil)
	w.refused(err, failure.Problems, "65536 bytes differ from byte 5242880 on", "diskhook quorum build --overwrite")
	if len(v.Differs["source"]) != 1 {
		t.Errorf("%+v", v)
	}
	// What was found equal before does not count any more.
	w.refused(fits(vda), failure.Precondition, "neither filled from a disk nor compared with one")
}
