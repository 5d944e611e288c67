// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// withFailpoints is diskhook as it is installed, but that it can be killed at a
// point.
func withFailpoints(t *testing.T) string {
	t.Helper()
	program := filepath.Join(work, "diskhook.failpoints")
	cmd := exec.Command("go", "build", "-tags", "libvirt_dlopen,testroot", "-o", program, "diskhook/cmd/diskhook")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// state is a disk whose settling is killed at a point. marked says that the raw
// copy is the disk by then.
type state struct {
	target, at string
	marked     bool
}

// TestInstantToRawIsKilledInEachState: the emulator dies, too. What the receipt
// says is the disk has every flushed write, and the next settling needs nothing
// else than to be run. Once the guest is suspended it stays so.
func TestInstantToRawIsKilledInEachState(t *testing.T) {
	program := withFailpoints(t)
	states := []state{
		{"vdb", "pivot.ready", false}, {"vdc", "pivot.resumed", true}, {"vdd", "pivot.suspended", false}, {"vde", "pivot.marked", true},
		{"vdf", "pivot.flushed", false}, {"vdg", "pivot.redefined", true}, {"vdh", "pivot.pivoted", false},
	}
	d := newDomain(t, "rawstates")
	writeImage(t, d.image(), diskImage(false))
	d.disks = diskXML("file", d.image(), "raw", "vda")
	args := []string{"domain", "apply"}
	want := map[string][]byte{}
	for i, s := range states {
		want[s.target] = bytes.Repeat([]byte{byte(0x10 + i)}, 4<<20)
		source := filepath.Join(d.dir, s.target+".raw")
		writeImage(t, source, want[s.target])
		d.disks += diskXML("file", source, "raw", s.target)
		args = append(args, "--local", s.target+"=dir,fill=instant")
	}
	d.define()
	diskhook(t, 0, append(args, d.name)...)
	d.start()
	d.boots(1)
	for _, s := range states {
		d.flushes(s.target, want[s.target], 0x77, 1<<20)
	}
	for _, s := range states {
		cmd := exec.Command(program, "local", "settle", "--raw", d.name, s.target)
		cmd.Env = append(os.Environ(), "DISKHOOK_FAILPOINT="+s.at+"=kill")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("disk %s at %s: %v: %s", s.target, s.at, err, out)
		}
		if s.at == "pivot.ready" { // both get it
			d.flushes(s.target, want[s.target], 0x78, 2<<20)
		}
	}
	if s := d.state(); s != "paused" {
		t.Errorf("it is %s", s)
	}
	run(t, "kill", "-KILL", content(t, "/run/libvirt/qemu/"+d.name+".pid"))
	eventually(t, func() bool { return d.state() == "shut off" }, "libvirt does not see that QEMU is gone")

	for _, s := range states {
		var r struct{ Overlay, Pivot json.RawMessage }
		if err := json.Unmarshal([]byte(content(t, strings.Replace(d.receiptPath(), "vda", s.target, 1))), &r); err != nil {
			t.Fatal(err)
		}
		if (r.Overlay == nil) != s.marked || r.Pivot == nil {
			t.Errorf("disk %s, killed at %s: overlay %s, pivot %s", s.target, s.at, r.Overlay, r.Pivot)
		}
		truth := d.rawOf(s.target)
		if !s.marked {
			truth = filepath.Join(d.dir, "flat")
			run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", strings.Replace(d.rawOf(s.target), "_raw.raw", ".qcow2", 1), truth)
		}
		holds(t, truth, want[s.target])
	}
	d.startVetoed("disk vd", "diskhook local settle --raw "+d.name+" vd")

	diskhook(t, 0, "local", "settle", d.name)
	definition := d.dumped()
	for _, s := range states {
		says(t, definition, "source file='"+strings.Replace(d.link(), "vda", s.target, 1)+"'")
		holds(t, d.rawOf(s.target), want[s.target])
	}
	if left, err := filepath.Glob("/var/lib/diskhook/local/dh_" + d.uuid + "*.qcow2"); err != nil || len(left) > 0 || strings.Contains(definition, "type='qcow2'") {
		t.Errorf("left: %q, %v, in\n%s", left, err, definition)
	}
	d.start()
	d.boots(2)
	d.destroy()
}

// rawOf is the raw copy of a disk that was an overlay.
func (d *domain) rawOf(target string) string {
	return "/var/lib/diskhook/local/dh_" + d.uuid + "_" + target + "_raw.raw"
}

// flushes is a write of the guest, of 64 KiB, that is flushed when this returns.
func (d *domain) flushes(target string, want []byte, pattern byte, at int) {
	d.t.Helper()
	for _, command := range []string{fmt.Sprintf("write -P %d %d 64k", pattern, at), "flush"} {
		out := run(d.t, "virsh", "qemu-monitor-command", d.uuid, "--hmp", fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "%s"`, target[2]-'a', command))
		if strings.Contains(out, "rror") || strings.Contains(out, "failed") {
			d.t.Fatalf("%s: %s", command, out)
		}
	}
	copy(want[at:], bytes.Repeat([]byte{pattern}, 64<<10))
}
