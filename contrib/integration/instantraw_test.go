// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestInstantToRawWhileShutOff: the disk becomes raw without an emulator, and
// one that was killed in the middle is begun anew.
func TestInstantToRawWhileShutOff(t *testing.T) {
	d := startsAtOnce(t, "rawoff")
	d.start()
	d.boots(1)
	d.writes(0x77, 6<<20, 64<<10)
	d.kill()

	settle := exec.Command("/usr/bin/diskhook", "local", "settle", "--raw", "--rate", "4M", d.name, "vda")
	if err := settle.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = settle.Process.Kill() })
	raw := strings.TrimSuffix(d.overlay(), ".qcow2") + "_raw.raw"
	eventually(t, func() bool { return exists(raw) }, "no raw copy is made")
	_ = settle.Process.Kill()
	_ = settle.Wait()
	d.start()
	d.boots(2)
	d.destroy()
	d.reads(2)

	diskhook(t, 0, "local", "settle", "--raw", d.name)
	if exists(d.overlay()) {
		t.Error("the overlay is left")
	}
	holds(t, raw, after(d.want, 2))
	says(t, d.dumped(), "type='raw'", "source file='"+d.link()+"'")
	d.sourceAway()
	d.start()
	d.boots(3)
	if d.copyFile() != raw {
		t.Errorf("the stable path leads to %s", d.copyFile())
	}
	d.destroy()
	holds(t, raw, after(d.want, 3))
}

// TestInstantToRawGivesWayToAStart: who starts the domain does not wait for it.
func TestInstantToRawGivesWayToAStart(t *testing.T) {
	d := startsAtOnce(t, "rawgives")
	d.start()
	d.boots(1)
	d.destroy()
	for i, args := range [][]string{{"--raw"}, nil} {
		settle := exec.Command("/usr/bin/diskhook", append(append([]string{"local", "settle", "--rate", "2M"}, args...), d.name, "vda")...)
		var said strings.Builder
		settle.Stderr = &said
		if err := settle.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = settle.Process.Kill() })
		// Before that it would go on with the help of QEMU.
		eventually(t, d.underWay, "it is not under way")
		d.start()
		if err := settle.Wait(); err == nil {
			t.Error("it came to its end")
		}
		says(t, said.String(), "its domain starts", "diskhook local settle")
		if strings.Contains(said.String(), "cancelled") {
			t.Errorf("nobody has cancelled it: %s", said.String())
		}
		d.boots(2 + i)
		d.destroy()
	}
	d.reads(3)
}

// suspendedBy writes into the receipt that a run of the domain was suspended,
// as a settling that was killed leaves it.
func (d *instant) suspendedBy(run string) {
	d.t.Helper()
	receipt := map[string]any{}
	if err := json.Unmarshal([]byte(content(d.t, d.receiptPath())), &receipt); err != nil {
		d.t.Fatal(err)
	}
	receipt["suspended_run"] = run
	text, err := json.Marshal(receipt)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.receiptPath(), text, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// TestSettleResumesItsOwnRunOnly: a pause of the run in which a settling was
// killed is ended by the next one; a pause of any other run is somebody's.
func TestSettleResumesItsOwnRunOnly(t *testing.T) {
	d := startsAtOnce(t, "paused")
	d.start()
	d.boots(1)
	boot := content(t, "/proc/sys/kernel/random/boot_id")
	earlier := boot + "/" + run(t, "virsh", "-q", "domid", d.uuid)
	d.suspendedBy(earlier)
	run(t, "virsh", "-q", "suspend", d.uuid)
	diskhook(t, 0, "local", "settle", d.name)
	if s := d.state(); s != "running" {
		t.Fatalf("it is %s", s)
	}
	if strings.Contains(content(t, d.receiptPath()), "suspended_run") {
		t.Error("the note is left")
	}

	d.suspendedBy(earlier)
	d.kill()
	d.start()
	run(t, "virsh", "-q", "suspend", d.uuid)
	diskhook(t, 0, "local", "settle", "--raw", d.name, "vda")
	if s := d.state(); s != "paused" {
		t.Errorf("the operator's pause was ended: it is %s", s)
	}
	run(t, "virsh", "-q", "resume", d.uuid)
	d.destroy()
}
