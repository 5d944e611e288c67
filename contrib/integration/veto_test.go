// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVetoes are starts that would give the guest other data than it left, or
// none. What virsh shows says why and what to do, and the `stopped` and
// `release` that libvirt sends after it change nothing.
func TestVetoes(t *testing.T) {
	d := filled(t, "veto")
	definition := d.dumped()
	redefine := func(old, now string) func(*testing.T) {
		return func(t *testing.T) {
			text := strings.ReplaceAll(definition, old, now)
			if text == definition {
				t.Fatalf("the definition has no %s", old)
			}
			d.defineAs(text)
			t.Cleanup(func() { d.defineAs(definition) })
		}
	}
	other := strings.Repeat("0123456789abcdef", 2)
	for _, c := range []struct {
		name  string
		spoil func(*testing.T)
		says  []string
	}{
		{"the copy is lost", func(t *testing.T) { moved(t, d.copy()) },
			[]string{"is gone, and the guest has written to it", "diskhook local recreate --discard-guest-data veto vda"}},
		{"the copy is marked unfinished", func(t *testing.T) {
			rename(t, d.copy(), d.copy()+".partial")
			t.Cleanup(func() { rename(t, d.copy()+".partial", d.copy()) })
		}, []string{"UPDATING", "the guest has written to it"}},
		{"the copy is cut off", func(t *testing.T) { cut(t, d.copy()) },
			[]string{"it was cut off", "diskhook local recreate --discard-guest-data veto vda"}},
		{"the receipt is lost", func(t *testing.T) { moved(t, d.receiptPath()) },
			[]string{"it has no receipt", "diskhook local adopt veto vda"}},
		{"the receipt is damaged", func(t *testing.T) {
			moved(t, d.receiptPath())
			if err := os.WriteFile(d.receiptPath(), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, []string{d.receiptPath(), "not understood", "diskhook local adopt " + d.uuid + " vda"}},
		{"another copy took its place", func(t *testing.T) {
			sidecar := strings.TrimSuffix(d.copy(), ".raw") + ".json"
			moved(t, sidecar)
			writeImage(t, sidecar, []byte(`{"schema":"diskhook.copy/v1","uuid":"7b1e8f8c-6d3b-4d0e-9d52-3c1b7a9e0f11"}`))
		}, []string{"7b1e8f8c-6d3b-4d0e-9d52-3c1b7a9e0f11", "another volume took its place"}},
		{"the binding is of another machine", redefine(content(t, "/etc/machine-id"), other),
			[]string{"is for the machine " + other, "start it there", "diskhook local export veto vda FILE"}},
		{"the binding names another copy", redefine("fill=", "copy='7b1e8f8c-6d3b-4d0e-9d52-3c1b7a9e0f11' fill="),
			[]string{"7b1e8f8c-6d3b-4d0e-9d52-3c1b7a9e0f11", "diskhook domain apply --refresh veto"}},
		{"the disk has another source", redefine("<source file='"+d.link(), "<source file='"+d.image()),
			[]string{d.link(), d.image(), "virsh edit veto", "diskhook domain apply --refresh veto"}},
		{"a kind that only a newer diskhook knows", redefine("dh:local", "dh:tape"), []string{"tape"}},
		{"an attribute that only a newer diskhook knows", redefine("fill=", "cipher='aes' fill="), []string{"cipher"}},
		{"metadata that cannot be read", redefine("target=\"vda\"", "target=\"\""),
			[]string{"virsh edit veto", "diskhook domain unbind veto"}},
		{"the metadata are gone", redefine(definition[strings.Index(definition, "  <metadata>"):strings.Index(definition, "  <memory")], ""),
			[]string{"its data is in the local copy", "diskhook domain apply veto", "diskhook domain revert --export FILE veto vda"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d.t = t
			t.Cleanup(func() { d.t = nil })
			c.spoil(t)
			state := digest(t, "/var/lib/diskhook", d.dir)
			said := d.startVetoed(append(c.says, "domain veto")...)
			t.Log(said)
			if digest(t, "/var/lib/diskhook", d.dir) != state {
				t.Error("the refused start changed something")
			}
			if exists("/run/diskhook/disks/" + d.uuid) {
				t.Error("the refused start left a link")
			}
			if d.state() != "shut off" {
				t.Error("the domain runs")
			}
		})
	}
	d.t = t
	if t.Failed() {
		return
	}
	d.start()
	d.boots(2)
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// cut takes the last sector off a file until the test ends.
func cut(t *testing.T, path string) {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(whole)-sector)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(whole[len(whole)-sector:], int64(len(whole)-sector)); err != nil {
			t.Error(err)
		}
	})
}

// TestTraps are sources that would make a program read what it must not, or
// that are not there. The guest never runs, and nothing is made.
func TestTraps(t *testing.T) {
	secret := filepath.Join(work, "secret.raw") // not below a root
	writeImage(t, secret, diskImage(false))
	qcow2 := func(t *testing.T, path string, options ...string) {
		run(t, "qemu-img", append(append([]string{"create", "-q", "-u", "-f", "qcow2"}, options...), path, "2M")...)
	}
	for _, c := range []struct {
		name, format string
		make         func(t *testing.T, path string)
		says         []string
	}{
		{"missing", "raw", func(*testing.T, string) {}, []string{"no such file or directory", "bring its storage back"}},
		{"missing qcow2", "qcow2", func(*testing.T, string) {}, []string{"no such file or directory", "bring its storage back"}},
		{"outside", "qcow2", func(t *testing.T, path string) { qcow2(t, path, "-b", secret, "-F", "raw") },
			[]string{secret, "[paths] roots", "diskhook.toml"}},
		{"shadow", "qcow2", func(t *testing.T, path string) { qcow2(t, path, "-b", "/etc/shadow", "-F", "raw") },
			[]string{"/etc/shadow"}},
		{"json", "qcow2", func(t *testing.T, path string) {
			qcow2(t, path, "-b", `json:{"driver":"raw","file":{"driver":"file","filename":"`+secret+`"}}`, "-F", "raw")
		}, []string{"json:"}},
		{"datafile", "qcow2", func(t *testing.T, path string) {
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+path+".data", path, "2M")
		}, []string{"data-file"}},
		{"huge", "qcow2", func(t *testing.T, path string) {
			qcow2(t, path)
			header := make([]byte, 8)
			binary.BigEndian.PutUint64(header, 1<<63)
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(header, 24); err != nil { // the virtual size
				t.Fatal(err)
			}
		}, []string{"size"}},
		{"link", "raw", func(t *testing.T, path string) {
			if err := os.Symlink(secret, path); err != nil {
				t.Fatal(err)
			}
		}, []string{secret, "[paths] roots"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDomain(t, "trap-"+c.name)
			path := filepath.Join(d.dir, "trap")
			c.make(t, path)
			d.bind("fill='start'", diskXML("file", path, c.format, "vda"))
			d.define()
			state := digest(t, "/var/lib/diskhook", d.dir)
			said := d.startVetoed(append(c.says, "disk vda")...)
			t.Log(said)
			if digest(t, "/var/lib/diskhook", d.dir) != state || d.receipt() != nil || exists(d.link()) {
				t.Error("the refused start left something")
			}
		})
	}
}

// TestHeaderInRawDisk: what a guest writes to the start of its raw disk is
// data, even if it looks like another image's header.
func TestHeaderInRawDisk(t *testing.T) {
	d := newDomain(t, "raw")
	victim := filepath.Join(d.dir, "victim.qcow2")
	run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", victim, "2M")
	image := diskImage(false)
	header, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	copy(image, header)
	writeImage(t, d.image(), image)
	d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
	d.define()
	d.start()
	d.destroy()
	holds(t, d.copy(), image)
}
