// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestApplyAndRevert: the definition that comes back is the one that was, byte
// for byte, and the definition in between is one that libvirt's schema takes.
func TestApplyAndRevert(t *testing.T) {
	image := diskImage(false)
	for _, c := range []struct {
		name string
		disk func(t *testing.T, d *domain) string // defines vda and returns the source
	}{
		{"raw", func(t *testing.T, d *domain) string {
			writeImage(t, d.image(), image)
			d.disks = diskXML("file", d.image(), "raw", "vda")
			return d.image()
		}},
		{"chain", func(t *testing.T, d *domain) string {
			top := chain(t, d.dir, image)
			d.disks = diskXML("file", top, "qcow2", "vda")
			return top
		}},
		{"written chain", func(t *testing.T, d *domain) string {
			top := chain(t, d.dir, image)
			d.disks = "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='writeback' discard='unmap'/>" +
				"<source file='" + top + "' startupPolicy='mandatory'/>" +
				"<backingStore type='file'><format type='qcow2'/><source file='" + d.dir + "/middle.qcow2'/>" +
				"<backingStore type='file'><format type='raw'/><source file='" + d.dir + "/base.raw'/><backingStore/></backingStore></backingStore>" +
				"<target dev='vda' bus='virtio'/><serial>one-only</serial></disk>"
			return top
		}},
		{"no driver", func(t *testing.T, d *domain) string {
			writeImage(t, d.image(), image)
			d.disks = "<disk type='file'><source file='" + d.image() + "'/><target dev='vda' bus='virtio'/><alias name='ua-first'/></disk>"
			return d.image()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "apply-" + strings.ReplaceAll(c.name, " ", "-")
			d := newDomain(t, name)
			c.disk(t, d)
			d.metadata = `<libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"><libosinfo:os id="it's"/></libosinfo:libosinfo>`
			d.define()
			before, files := d.dumped(), digest(t, "/var/lib/diskhook", d.dir)

			for _, dry := range [][]string{{"domain", "plan"}, {"domain", "apply", "-n"}} {
				says(t, diskhook(t, 10, append(dry, "--local", "vda=dir", name)...), "+      <source file='"+d.link()+"'/>", d.copy())
				if d.dumped() != before || digest(t, "/var/lib/diskhook", d.dir) != files {
					t.Fatalf("%q changed something", dry)
				}
			}
			diskhook(t, 0, "domain", "apply", "--local", "vda=dir", name)
			holds(t, d.copy(), image)
			bound := d.dumped()
			says(t, bound, "urn:diskhook:1", "<source file='"+d.link()+"'", d.receipt().Copy, "libosinfo")
			write(t, filepath.Join(d.dir, "bound.xml"), bound)
			run(t, "virt-xml-validate", filepath.Join(d.dir, "bound.xml"), "domain")
			says(t, diskhook(t, 0, "domain", "list"), name, d.image()[:len(d.dir)])

			copied := digest(t, "/var/lib/diskhook")
			says(t, diskhook(t, 0, "domain", "apply", "--local", "vda=dir", name), "nothing to do")
			diskhook(t, 0, "domain", "plan", "--local", "vda=dir", name)
			if d.dumped() != bound || digest(t, "/var/lib/diskhook") != copied {
				t.Error("a second apply changed something")
			}

			// No guest has used the copy: there is nothing to give up.
			says(t, diskhook(t, 10, "domain", "revert", "-n", name), d.copy()[:len(d.copy())-len(".raw")])
			diskhook(t, 0, "domain", "revert", name)
			same(t, before, d.dumped())
			if exists(d.copy()) || d.receipt() != nil {
				t.Error("the copy is left")
			}

			diskhook(t, 0, "domain", "apply", "--local", "vda=dir", name)
			d.start()
			d.boots(1)
			d.destroy()
			says(t, diskhook(t, 4, "domain", "revert", name), "what the guest wrote is in its local copy",
				"diskhook domain revert --export FILE "+name+" vda", "--discard-guest-data")
			exported := filepath.Join(d.dir, "exported.raw")
			diskhook(t, 0, "domain", "revert", "--export", exported, name)
			holds(t, exported, after(image, 1))
			// Not to the origin: that has older data.
			if !strings.Contains(d.dumped(), "file='"+exported+"'") {
				t.Errorf("the disk is not on the exported file: %s", d.dumped())
			}
			if exists(d.copy()) || d.receipt() != nil {
				t.Error("the copy is left")
			}
			says(t, diskhook(t, 0, "domain", "revert", name), "nothing to do")
			d.start()
			d.boots(2)
		})
	}
}

// same compares two definitions.
func same(t *testing.T, before, now string) {
	t.Helper()
	if before == now {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(now, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("the definition is not what it was, line %d:\n%s\nnow\n%s", i+1, a[i], b[i])
			return
		}
	}
	t.Errorf("the definition is not what it was: %d lines, now %d", len(a), len(b))
}

// TestApplyRefuses what must not be bound, names the way out and changes
// nothing.
func TestApplyRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		code    int
		prepare func(t *testing.T, d *domain)
		args    []string
		says    []string
	}{
		{"running", 4, func(_ *testing.T, d *domain) { d.start(); d.boots(1) }, nil, []string{"it is running", "virsh shutdown NAME"}},
		{"paused", 4, func(t *testing.T, d *domain) { run(t, "virsh", "-q", "start", "--paused", d.uuid) }, nil, []string{"it is paused"}},
		{"saved", 4, func(t *testing.T, d *domain) { d.start(); d.boots(1); run(t, "virsh", "-q", "managedsave", d.uuid) }, nil,
			[]string{"managed save", "virsh managedsave-remove NAME"}},
		{"snapshots", 4, func(t *testing.T, d *domain) {
			d.disks = diskXML("file", chain(t, d.dir, diskImage(false)), "qcow2", "vda")
			d.define()
			run(t, "virsh", "-q", "snapshot-create-as", d.uuid, "s1")
			t.Cleanup(func() { _ = try(t, "virsh", "-q", "snapshot-delete", d.uuid, "s1") })
		}, nil, []string{"1 snapshots", "virsh snapshot-delete NAME"}},
		{"transient", 7, func(t *testing.T, d *domain) {
			run(t, "virsh", "-q", "undefine", d.uuid)
			run(t, "virsh", "-q", "create", filepath.Join(d.dir, "domain.xml"))
			d.boots(1)
		}, nil, []string{"transient", "virsh define"}},
		{"shared", 4, func(t *testing.T, d *domain) {
			other := newDomain(t, "sharer")
			other.disks = diskXML("file", d.image(), "raw", "vda")
			other.define()
		}, nil, []string{"the domain sharer has", "as its disk vda"}},
		{"shareable", 2, func(_ *testing.T, d *domain) {
			d.disks = strings.Replace(d.disks, "<target", "<shareable/><target", 1)
			d.define()
		}, nil, []string{"shared"}},
		{"open", 4, func(t *testing.T, d *domain) {
			f, err := os.Open(d.image())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
		}, nil, []string{"is in use by", "stop what uses it"}},
		{"no such disk", 3, func(*testing.T, *domain) {}, []string{"--local", "vdz=dir"}, []string{"vdz"}},
		{"wrong backend", 2, func(*testing.T, *domain) {}, []string{"--local", "vda=tape"}, []string{"local=tape", "dir, lvm, lvmthin"}},
		{"wrong option", 2, func(*testing.T, *domain) {}, []string{"--local", "vda=dir,fill=never"}, []string{"fill=never", "now, start"}},
		{"no binding", 2, func(*testing.T, *domain) {}, []string{}, []string{"diskhook domain apply --local"}},
		{"cdrom", 2, func(_ *testing.T, d *domain) {
			d.disks = strings.Replace(strings.Replace(d.disks, "device='disk'", "device='cdrom'", 1), "dev='vda' bus='virtio'", "dev='sda' bus='sata'", 1)
			d.define()
		}, []string{"--local", "*"}, []string{"CD-ROM"}},
		{"no volume group", 7, func(*testing.T, *domain) {}, []string{"--local", "vda=lvm"}, []string{"ovirt-local"}},
		{"source outside the roots", 7, func(t *testing.T, d *domain) {
			path := filepath.Join(work, "outside.raw")
			writeImage(t, path, diskImage(false))
			d.disks = diskXML("file", path, "raw", "vda")
			d.define()
		}, nil, []string{"outside.raw", "[paths] roots"}},
		{"trap", 7, func(t *testing.T, d *domain) {
			path := filepath.Join(d.dir, "trap.qcow2")
			run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", path, "2M")
			d.disks = diskXML("file", path, "qcow2", "vda")
			d.define()
		}, nil, []string{"/etc/shadow", "[paths] roots"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "refused-" + strings.ReplaceAll(c.name, " ", "-")
			d := bootable(t, name)
			c.prepare(t, d)
			before, files := d.dumped(), digest(t, "/var/lib/diskhook", d.dir)
			args := c.args
			if args == nil {
				args = []string{"--local", "vda=dir"}
			}
			for _, verb := range [][]string{{"domain", "plan"}, {"domain", "apply"}} {
				said := diskhook(t, c.code, append(append(verb, args...), name)...)
				t.Log(strings.TrimSpace(said))
				for _, word := range c.says {
					says(t, said, strings.ReplaceAll(word, "NAME", name))
				}
			}
			if d.dumped() != before || digest(t, "/var/lib/diskhook", d.dir) != files {
				t.Error("the refused apply changed something")
			}
		})
	}
	says(t, diskhook(t, 3, "domain", "apply", "--local", "vda", "nobody"), "nobody")
}

// TestNames: libvirt takes these for names, and nothing else may.
func TestNames(t *testing.T) {
	victim := filepath.Join(work, "victim")
	write(t, victim, "still here")
	for _, name := range []string{"-rf", "--help", "a b 'c' \"d\" $(rm " + filepath.Base(victim) + ")", "...", "ümläut & <x>"} {
		t.Run(name, func(t *testing.T) {
			d := bootable(t, name)
			before := d.dumped()
			diskhook(t, 0, "domain", "apply", "--local", "vda=dir", "--", name)
			d.start()
			d.linked(true)
			d.boots(1)
			says(t, diskhook(t, 0, "domain", "list"), name)
			says(t, diskhook(t, 0, "local", "status", "--", name), "vda")
			says(t, diskhook(t, 4, "domain", "revert", "--discard-guest-data", "--", name), "it is running")
			d.destroy()
			rename(t, d.copy(), d.copy()+".away")
			d.startVetoed("is gone")
			rename(t, d.copy()+".away", d.copy())
			d.start()
			d.boots(2)
			d.destroy()
			diskhook(t, 0, "domain", "revert", "--discard-guest-data", "--", name)
			same(t, before, d.dumped())
		})
	}
	if content(t, victim) != "still here" {
		t.Error("a name was taken for a command")
	}
}
