// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestOVirtHost is a host of oVirt without VDSM: its user, its directories,
// storage as VDSM mounts it, and the hook points called as VDSM calls them.
func TestOVirtHost(t *testing.T) {
	host{
		install: "install-vdsm",
		images: []chain{
			{name: "first", seed: 10}, {name: "second", seed: 20}, {name: "old", seed: 30}, {name: "stateless", seed: 40},
		},
		boots: []boot{{"hook points", hookPoints, inOrder}},
	}.run(t)
}

func hookPoints(m machine) {
	m.run("sh", "-euc", `getent group kvm >/dev/null || groupadd -r kvm; groupadd -r qemu
		useradd -u 36 -g kvm -G qemu -d /var/lib/vdsm -s /sbin/nologin vdsm`)
	m.install()
	m.storageDomain("first", "second", "old", "stateless")
	m.mountShared("root_squash", mount)
	m.must(os.MkdirAll("/rhev/data-center/"+poolID, 0o755))
	m.must(os.Symlink(filepath.Join(mount, domainID), filepath.Join("/rhev/data-center", poolID, domainID)))
	if r := m.try("", "cat", vm{image: "first"}.path("base.qcow2")); r.code == 0 {
		m.Fatal("root may read the export, so this proves nothing")
	}
	m.scenario("after_disk_prepare", afterDiskPrepare)
	m.scenario("before_vm_start", beforeVMStart)
	m.scenario("property gone", propertyGone)
	m.scenario("new leaf", newLeaf)
	m.scenario("volume of the old hook", oldHook)
	m.scenario("discard", discarded)
	m.scenario("unplugged disk", unplugged)
	m.scenario("managed volume", volumeOfVM)
	m.scenario("malicious requests", malicious)
}

// storageDomain turns images into those of a storage domain, readable by vdsm
// alone.
func (m machine) storageDomain(names ...string) {
	for _, name := range names {
		v := vm{image: name}
		m.run("sh", "-euc", `
			mkdir -p "$1/$2/images"
			mv "$1/$3" "$1/$2/images/$4"
			mv "$1/$2/images/$4/top.qcow2" "$1/$2/images/$4/$5"
			chown -R vdsm:kvm "$1/$2"; chmod -R u=rwX,g=,o= "$1/$2"`, "sh", export, domainID, name, v.imageID(), v.leaf())
	}
	m.run("sync")
}

var (
	lvmProperty  = []string{"localdisk=lvm"}
	thinProperty = []string{"localdisk=lvmthin"}
)

func afterDiskPrepare(m machine) {
	for backend, v := range map[string]vm{"lvm": {"a", "first"}, "lvmthin": {"b", "second"}} {
		m.prepare(v, "localdisk="+backend)
		m.sameVolume(v)
		lv := m.lv(v.leaf(), "lv_tags", "lv_skip_activation", "segtype", "lv_uuid")
		tags := strings.Split(lv[0], ",")
		for _, tag := range []string{"VM_" + v.id(), "IU_" + v.imageID(), "PU_00000000-0000-0000-0000-000000000000"} {
			if !slices.Contains(tags, tag) {
				m.Errorf("no tag %s among %v", tag, tags)
			}
		}
		// The old hook could still use it.
		if slices.Contains(tags, "UPDATING") || lv[1] != "" || lv[2] != map[string]string{"lvm": "linear", "lvmthin": "thin"}[backend] {
			m.Errorf("volume: %v", lv)
		}
		if r := m.receipt(v.id(), v.imageID()); r == nil || r.Copy != lv[3] || !r.Used || r.Volume != v.leaf() {
			m.Errorf("receipt %+v", r)
		}
	}

	v := vm{"a", "first"}
	m.writes(v.node(), 0x31, 2<<20)
	m.unchanged(func() {
		ran := m.lvmCommands(func() { m.prepare(v, lvmProperty...) })
		if len(ran) == 0 || len(ran) > 2 {
			m.Errorf("%d LVM commands for a ready disk:\n%s", len(ran), strings.Join(ran, "\n"))
		}
	})
	m.reads(v.node(), 0x31, 2<<20)

	// As at boot, when LVM activates everything and nobody calls a hook.
	m.deactivate(v.leaf())
	m.run("lvchange", "-ay", "ovirt-local/"+v.leaf())
	m.run("udevadm", "settle")
	m.ownedByVDSM(v)

	other := vm{"unbound", "unbound"}
	if r, after := m.point(other, "after_disk_prepare", nil, other.prepared(other.leaf())); r.code != 0 || after != other.prepared(other.leaf()) {
		m.Errorf("a VM without property: %d %s %s", r.code, r.output, after)
	}
	m.refusedPrepare(v, v.leaf(), []string{"localdisk=zfs"}, v.id(), "property localdisk", "zfs", "lvmthin")
}

// beforeVMStart comes after the disks have been prepared.
func beforeVMStart(m machine) {
	v := vm{"a", "first"}
	m.unchanged(func() {
		r, after := m.point(v, "before_vm_start", lvmProperty, v.xml("block", "dev", v.node()))
		want := strings.Replace(v.xml("block", "dev", v.node()), `io="threads"`, `io="native"`, 1)
		if r.code != 0 || after != want {
			m.Errorf("exit code %d: %s\n%s", r.code, r.output, after)
		}
	})
	m.reads(v.node(), 0x31, 2<<20)

	// Between the two hook points the volume may have become another.
	m.deactivate(v.leaf())
	ran := m.lvmCommands(func() {
		if r, _ := m.point(v, "before_vm_start", lvmProperty, v.xml("block", "dev", v.node())); r.code != 0 {
			m.Errorf("an inactive volume: exit code %d: %s", r.code, r.output)
		}
	})
	if len(ran) > 2 {
		m.Errorf("%d LVM commands for a disk that is placed:\n%s", len(ran), strings.Join(ran, "\n"))
	}
	m.ownedByVDSM(v)
	m.reads(v.node(), 0x31, 2<<20)
	m.run("lvchange", "--addtag", "UPDATING", "ovirt-local/"+v.leaf())
	r, _ := m.point(v, "before_vm_start", lvmProperty, v.xml("block", "dev", v.node()))
	m.refused(r, 2, "sda", "UPDATING")
	m.run("lvchange", "--deltag", "UPDATING", "ovirt-local/"+v.leaf())

	r, after := m.point(v, "before_vm_migrate_source", lvmProperty, v.xml("block", "dev", v.node()))
	m.refused(r, 2, "sda")
	if after != v.xml("block", "dev", v.node()) {
		m.Errorf("a refused migration: %s", after)
	}
}

func propertyGone(m machine) {
	v := vm{"a", "first"}
	m.refusedPrepare(v, v.leaf(), nil, v.id(), "disk sda", v.leaf(), "localdisk=lvm", "diskhook local remove --discard-guest-data")
	m.refusedPrepare(v, v.leaf(), thinProperty, "disk sda", "lvmthin", "lives on lvm")
	m.reads(v.node(), 0x31, 2<<20)
}

// newLeaf: a snapshot on shared storage would hide what the guest wrote.
func newLeaf(m machine) {
	v := vm{"a", "first"}
	snapshot := id("snapshot")
	m.run("sh", "-euc", `cd "$1"; qemu-img create -q -f qcow2 -b "$2" -F qcow2 "$3"; chown vdsm:kvm "$3"; chmod 600 "$3"`,
		"sh", strings.Join([]string{export, domainID, "images", v.imageID()}, "/"), v.leaf(), snapshot)
	m.refusedPrepare(v, snapshot, lvmProperty, "disk sda", v.leaf(), snapshot, "go back to the older leaf")
}

// oldHook takes over what oVirt's own hook made, by its very commands.
func oldHook(m machine) {
	v := vm{"old", "old"}
	lvm := func(verb string, args ...string) {
		m.run("lvm", append([]string{verb, "--config", `devices { filter=["a|.*|"] }`}, args...)...)
	}
	lvm("lvcreate", "-n", v.leaf(), "--addtag", "UPDATING", "--addtag", "VM_"+v.id(), "--addtag", "IU_"+v.imageID(),
		"--addtag", "PU_00000000-0000-0000-0000-000000000000", "--size", fmt.Sprint(oddSize)+"b", "ovirt-local")
	r := m.asVDSM(nil, "", "qemu-img", "convert", "-t", "none", "-T", "none", "-f", "qcow2", "-O", "raw", v.path(v.leaf()), v.node())
	if r.code != 0 {
		m.Fatal(r.output)
	}
	lvm("lvchange", "--deltag", "UPDATING", "ovirt-local/"+v.leaf())
	m.writes(v.node(), 0x55, 6<<20)
	before := m.lv(v.leaf(), "lv_uuid")[0]

	m.refusedPrepare(vm{"thief", "old"}, v.leaf(), lvmProperty, "VM_"+vm{name: "thief"}.id())
	holder, err := os.Open(v.node())
	m.must(err)
	m.refusedPrepare(v, v.leaf(), lvmProperty, v.leaf(), "open")
	m.must(holder.Close())

	m.prepare(v, lvmProperty...)
	lv := m.lv(v.leaf(), "lv_uuid", "lv_tags")
	if lv[0] != before || !strings.Contains(lv[1], "DH_v1") || !strings.Contains(lv[1], "IU_"+v.imageID()) {
		m.Errorf("adopted: %v, was %s", lv, before)
	}
	if r := m.receipt(v.id(), v.imageID()); r == nil || !r.Used || r.Copy != before {
		m.Errorf("receipt %+v", r)
	}
	m.reads(v.node(), 0x55, 6<<20)

	// The same, where the old hook has placed the disk.
	m.must(os.Remove(filepath.Join("/var/lib/diskhook/receipts", v.id(), v.imageID()+".json")))
	for tag := range strings.SplitSeq(lv[1], ",") {
		if strings.HasPrefix(tag, "DH_") {
			m.run("lvchange", "--deltag", tag, "ovirt-local/"+v.leaf())
		}
	}
	if r, _ := m.point(v, "before_vm_start", lvmProperty, v.xml("block", "dev", v.node())); r.code != 0 {
		m.Errorf("placed by the old hook: exit code %d: %s", r.code, r.output)
	}
	if r := m.receipt(v.id(), v.imageID()); r == nil || !r.Used || r.Copy != before {
		m.Errorf("receipt %+v", r)
	}
	m.reads(v.node(), 0x55, 6<<20)
}

// discarded: the copy goes after the VM, but not while it is hibernated.
func discarded(m machine) {
	v := vm{"stateless", "stateless"}
	property := []string{"diskhook=local=lvmthin,on-stop=discard"}
	call := func(point string) {
		m.Helper()
		if r, _ := m.point(v, point, property, v.xml("block", "dev", v.node())); r.code != 0 {
			m.Errorf("%s: exit code %d: %s", point, r.code, r.output)
		}
	}
	m.prepare(v, property...)
	m.sameVolume(v)
	m.writes(v.node(), 0x66, 4<<20)
	call("after_vm_hibernate")
	call("after_vm_destroy")
	m.prepare(v, property...)
	m.reads(v.node(), 0x66, 4<<20)
	call("before_vm_dehibernate")
	call("after_vm_dehibernate")
	r, _ := m.point(v, "before_vm_dehibernate", property, v.xml("block", "dev", v.node()))
	m.refused(r, 2, "sda", "suspended here")
	call("after_vm_destroy")
	if strings.Contains(m.volumes(), v.leaf()) || m.receipt(v.id(), v.imageID()) != nil {
		m.Error("the copy of a stateless VM is still there")
	}
	m.prepare(v, property...)
	m.sameVolume(v)
}

// unplugged: the XML of the VM's end does not name the disk any more.
func unplugged(m machine) {
	v := vm{"a", "first"}
	m.prepare(v, lvmProperty...)
	before, rest, _ := strings.Cut(v.xml("block", "dev", v.node()), "<disk ")
	_, after, _ := strings.Cut(rest, "</disk>")
	m.unchanged(func() {
		if r, _ := m.point(v, "after_vm_destroy", lvmProperty, before+after); r.code != 0 {
			m.Errorf("exit code %d: %s", r.code, r.output)
		}
	})
	if active := m.lv(v.leaf(), "lv_active")[0]; active != "" {
		m.Errorf("the volume is still %s", active)
	}
}

// malicious: vdsm may be taken over; then diskhook-helper is what stands
// between it and root.
func malicious(m machine) {
	v := vm{"evil", "second"}
	honest := map[string]any{
		"domain": v.id(), "domain_name": "evil", "target": "sda", "image": v.imageID(), "volume": id("evil volume"),
		"backend": "lvm", "on_stop": "keep", "create": true,
		"source": []map[string]string{{"path": v.path(v.leaf()), "format": "qcow2"}},
	}
	ask := func(verb string, change map[string]any) result {
		m.Helper()
		disk := map[string]any{}
		for _, from := range []map[string]any{honest, change} {
			for k, value := range from {
				disk[k] = value
			}
		}
		request, err := json.Marshal(map[string]any{"disks": []any{disk}, "deadline_ms": 60000})
		m.must(err)
		return m.asVDSM([]string{"DISKHOOK_ROOT=/tmp/evil", "LVM_SYSTEM_DIR=/tmp/evil", "LD_PRELOAD=/tmp/evil.so"},
			string(request), "sudo", "-n", "/usr/libexec/diskhook/diskhook-helper", "local", verb)
	}
	source := func(path, format string) map[string]any {
		return map[string]any{"source": []map[string]string{{"path": path, "format": format}}}
	}
	m.run("sh", "-euc", `ln -s /etc/shadow "$1/shadow"; qemu-img create -q -f qcow2 -b /etc/shadow -F raw -u "$1/trap" 1M; chown -h vdsm:kvm "$1"/*`,
		"sh", strings.Join([]string{export, domainID, "images", v.imageID()}, "/"))
	for name, r := range map[string]func() result{
		"verb":              func() result { return ask("remove", nil) },
		"key":               func() result { return ask("fulfil", map[string]any{"owner": 0}) },
		"domain":            func() result { return ask("fulfil", map[string]any{"domain": "../../../etc"}) },
		"volume":            func() result { return ask("fulfil", map[string]any{"volume": "pool0"}) },
		"backend":           func() result { return ask("fulfil", map[string]any{"backend": "raw"}) },
		"source":            func() result { return ask("fulfil", source("/etc/shadow", "raw")) },
		"source with dots":  func() result { return ask("fulfil", source(mount+"/../../../../etc/shadow", "raw")) },
		"source by a link":  func() result { return ask("fulfil", source(v.path("shadow"), "raw")) },
		"backing file":      func() result { return ask("fulfil", source(v.path("trap"), "qcow2")) },
		"not a plain image": func() result { return ask("fulfil", map[string]any{"volume": "", "image": ""}) },
	} {
		m.unchanged(func() {
			if got := r(); got.code == 0 || !strings.Contains(got.output, `{"error":`) {
				m.Errorf("%s: exit code %d: %s", name, got.code, got.output)
			}
		})
	}
	if r := m.asVDSM(nil, "", "sudo", "-n", "/usr/bin/diskhook", "local", "list"); r.code == 0 {
		m.Errorf("vdsm may run everything as root: %s", r.output)
	}

	stateless := vm{"stateless", "stateless"}
	lock := filepath.Join("/run/diskhook/lock", "local-"+stateless.id()+"-"+stateless.imageID())
	if r := m.asVDSM(nil, "", "rm", "-f", lock); r.code == 0 {
		m.Error("vdsm may remove a lock")
	}
	holder, err := os.Open(stateless.node())
	m.must(err)
	lie, err := json.Marshal(map[string]any{"domain": stateless.id(), "reason": "destroyed", "disks": []any{map[string]any{
		"domain": stateless.id(), "target": "sda", "image": stateless.imageID(), "volume": stateless.leaf(),
		"backend": "lvmthin", "on_stop": "discard", "create": false,
	}}})
	m.must(err)
	m.unchanged(func() {
		if r := m.asVDSM(nil, string(lie), "sudo", "-n", "/usr/libexec/diskhook/diskhook-helper", "local", "release"); r.code == 0 {
			m.Errorf("an open disk was released as if the VM had gone: %s", r.output)
		}
	})
	m.must(holder.Close())

	m.must(os.Chmod("/etc/diskhook/diskhook.toml", 0o666))
	m.refusedPrepare(vm{"a", "first"}, vm{image: "first"}.leaf(), lvmProperty, "/etc/diskhook/diskhook.toml", "chmod go-w")
	m.must(os.Chmod("/etc/diskhook/diskhook.toml", 0o644))
	m.prepare(vm{"a", "first"}, lvmProperty...)
}
