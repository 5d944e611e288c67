// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"testing"
)

// The installed hook, and the other place where libvirt looks for one.
const (
	inFolder = "/etc/libvirt/hooks/qemu.d/50-diskhook"
	asMain   = "/etc/libvirt/hooks/qemu"
)

// TestWithoutHook: if the hook does not run the VM does not start, for its disk
// is named by a path that only the hook makes. libvirt says nothing of a hook
// that it skips.
func TestWithoutHook(t *testing.T) {
	fresh, used := startable(t, "fresh"), filled(t, "used")
	for _, c := range []struct {
		name string
		take func(*testing.T)
	}{
		{"not executable", func(t *testing.T) {
			mode(t, inFolder, 0o644)
		}},
		{"missing", func(t *testing.T) { moved(t, inFolder); mode(t, inFolder+".away", 0o644) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.take(t)
			state := digest(t, "/var/lib/diskhook")
			for _, d := range []*domain{fresh, used} {
				r := try(t, "virsh", "start", d.uuid)
				if r.code == 0 {
					t.Fatalf("domain %s starts without its hook", d.name)
				}
				says(t, r.stderr, "Cannot access storage file '"+d.link()+"'", "No such file or directory")
				if d.state() != "shut off" || exists(d.link()) {
					t.Errorf("domain %s is %s", d.name, d.state())
				}
			}
			if digest(t, "/var/lib/diskhook") != state {
				t.Error("something was changed")
			}
		})
	}
	fresh.start()
	fresh.boots(1)
	used.start()
	used.boots(2)
}

// mode sets a file's mode until the test ends.
func mode(t *testing.T, path string, m os.FileMode) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, m); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(path, st.Mode()) })
}

// TestWaysToInstall: as libvirt's one script, as one of several, and as both.
func TestWaysToInstall(t *testing.T) {
	program, err := os.ReadFile(inFolder)
	if err != nil {
		t.Fatal(err)
	}
	install := func(t *testing.T) {
		if err := os.WriteFile(asMain, program, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(asMain) })
	}
	for _, c := range []struct {
		name  string
		apply func(*testing.T)
	}{
		{"main", func(t *testing.T) { install(t); moved(t, inFolder); mode(t, inFolder+".away", 0o644) }},
		{"both", install},
		{"link", func(t *testing.T) {
			moved(t, inFolder)
			mode(t, inFolder+".away", 0o644)
			if err := os.Symlink("/usr/libexec/diskhook/qemu-hook", inFolder); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(inFolder) })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.apply(t)
			d := startable(t, "way-"+c.name)
			d.start()
			d.linked(true)
			d.boots(1)
			first := d.receipt()
			d.destroy()
			d.linked(false)
			d.start()
			d.boots(2)
			if again := d.receipt(); *again != *first {
				t.Errorf("receipt %+v, then %+v", first, again)
			}
			d.destroy()
			holds(t, d.copy(), after(diskImage(false), 2))
		})
	}
}

// TestOtherHookFails: libvirt calls all scripts even if one has failed, and
// refuses the start. What ours did by then is undone by `release`.
func TestOtherHookFails(t *testing.T) {
	for _, name := range []string{"10-other", "90-other"} {
		t.Run(name, func(t *testing.T) {
			d := startable(t, "other-"+name[:2])
			other := filepath.Join(filepath.Dir(inFolder), name)
			if err := os.WriteFile(other, []byte("#!/bin/sh\n[ \"$2\" != prepare ] || { echo not today >&2; exit 1; }\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(other)
			r := try(t, "virsh", "start", d.uuid)
			if r.code == 0 {
				t.Fatal("it starts")
			}
			says(t, r.stderr, "not today")
			d.linked(false)
			holds(t, d.copy(), diskImage(false))
			if err := os.Remove(other); err != nil {
				t.Fatal(err)
			}
			d.start()
			d.boots(1)
		})
	}
}
