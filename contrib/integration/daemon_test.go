// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// broken are the ways in which a host can be out of order. Each returns what
// puts it right again.
var broken = []struct {
	name   string
	breaks func(t *testing.T) (mend func())
}{
	{"configuration that is not TOML", func(t *testing.T) func() {
		return replaced(t, "/etc/diskhook/diskhook.toml", "[local\ndeadline = soon")
	}},
	{"configuration with wrong keys", func(t *testing.T) func() {
		return replaced(t, "/etc/diskhook/diskhook.toml", "[local]\nbackend = \"tape\"\nspeed = 11\n")
	}},
	{"state that cannot be read", func(t *testing.T) func() {
		return obstructed(t, "/var/lib/diskhook/receipts", "/var/lib/diskhook/local")
	}},
	{"no machine id", func(t *testing.T) func() {
		id := content(t, "/etc/machine-id")
		write(t, "/etc/machine-id", "")
		return func() { write(t, "/etc/machine-id", id+"\n") }
	}},
	{"links and locks that cannot be made", func(t *testing.T) func() {
		return obstructed(t, "/run/diskhook/disks", "/run/diskhook/lock", "/run/diskhook/status")
	}},
	{"diskhook is not installed", func(t *testing.T) func() { return moved(t, "/usr/bin/diskhook") }},
	{"diskhook is no program", func(t *testing.T) func() {
		return replaced(t, "/usr/bin/diskhook", "not a program\n")
	}},
}

// obstructed puts files into the places of folders.
func obstructed(t *testing.T, dirs ...string) (mend func()) {
	t.Helper()
	var mends []func()
	for _, dir := range dirs {
		mends = append(mends, replaced(t, dir, "not a folder\n"))
	}
	return func() {
		for _, mend := range mends {
			mend()
		}
	}
}

// replaced puts other content into the place of a file.
func replaced(t *testing.T, path, text string) (mend func()) {
	t.Helper()
	back := moved(t, path)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return func() { t.Helper(); _ = os.Remove(path); back() }
}

// write changes a file that cannot be replaced, as it is a mount.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestBrokenHost: a running VM outlives a restart of libvirtd, and a VM that is
// not bound starts, whatever is wrong with diskhook.
func TestBrokenHost(t *testing.T) {
	bound := startable(t, "bound")
	bound.start()
	bound.boots(1)
	free := bootable(t, "free")
	state := digest(t, "/var/lib/diskhook/local")
	for i, c := range broken {
		t.Run(c.name, func(t *testing.T) {
			bound.t, free.t = t, t
			mend := c.breaks(t)
			t.Cleanup(mend)
			run(t, "libvirtd-ctl", "restart")
			free.start()
			free.boots(i + 1)
			free.destroy()
			// Only now, since libvirtd answers before it has called all hooks.
			if s := bound.state(); s != "running" {
				t.Errorf("the bound domain is %s", s)
			}
		})
	}
	bound.t, free.t = t, t
	bound.linked(true)
	if digest(t, "/var/lib/diskhook/local") != state {
		t.Error("copies were changed")
	}
	bound.destroy()
	bound.start()
	bound.boots(2)
}

// TestReconnect: a libvirtd that was killed finds its VMs, and links that
// somebody removed are there again.
func TestReconnect(t *testing.T) {
	d := startable(t, "reconnect")
	d.start()
	d.boots(1)
	if err := os.Remove(d.link()); err != nil {
		t.Fatal(err)
	}
	run(t, "kill", "-KILL", content(t, "/run/libvirtd-sandbox/main/libvirtd.pid"))
	eventually(t, func() bool { return try(t, "virsh", "-q", "uri").code != 0 }, "libvirtd goes on")
	run(t, "libvirtd-ctl", "start")
	if s := d.state(); s != "running" {
		t.Fatalf("the domain is %s", s)
	}
	eventually(t, func() bool { return exists(d.link()) }, "the stable path is not made again")
	d.linked(true)

	// A copy that is gone is no reason to kill who still has it open.
	back := moved(t, d.copy())
	if err := os.Remove(d.link()); err != nil {
		t.Fatal(err)
	}
	calls := reconnects(t)
	run(t, "libvirtd-ctl", "restart")
	eventually(t, func() bool { return reconnects(t) > calls }, "the hook is not called")
	if s := d.state(); s != "running" {
		t.Fatalf("without its copy the domain is %s", s)
	}
	if exists(d.copy()) || exists(d.copy()+".partial") || exists(d.link()) {
		t.Error("a copy was made for a running domain")
	}
	back()
	run(t, "libvirtd-ctl", "restart")
	eventually(t, func() bool { return exists(d.link()) }, "the stable path is not made again")
	d.linked(true)
	d.destroy()
	holds(t, d.copy(), after(diskImage(false), 1))
}

// reconnects counts the calls of the hook by a libvirtd that found a domain of
// TestReconnect running.
func reconnects(t *testing.T) int {
	t.Helper()
	return strings.Count(content(t, "/run/diskhook/hook.log"), "domain=reconnect op=reconnect")
}

// TestCrashedQEMU: the guest's writes are kept.
func TestCrashedQEMU(t *testing.T) {
	d := startable(t, "crashed")
	d.start()
	d.boots(1)
	run(t, "kill", "-KILL", strings.TrimSpace(content(t, "/run/libvirt/qemu/crashed.pid")))
	eventually(t, func() bool { return d.state() == "shut off" }, "libvirt does not see that QEMU is gone")
	eventually(t, func() bool { return !exists(filepath.Dir(d.link())) }, "the stable path stays")
	holds(t, d.copy(), after(diskImage(false), 1))
	d.start()
	d.boots(2)
}
