// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"diskhook/storage/imagecheck"
)

// smallSize is the virtual size of images that are read in soon.
const smallSize = 8 << 20

// smallImages are those of the domains that start on overlays: an image is of
// one domain.
func smallImages() []chain {
	var images []chain
	for i, domain := range []string{"instant", onOverlays.name, onRaw.name} {
		images = append(images, chain{name: domain, seed: 70 + 5*i, size: smallSize})
	}
	return images
}

// onTemplate is the backend of a disk that lies on the template of its base.
const onTemplate = "lvm,template=overlay"

// instant is a domain whose disks lie on overlays. Its guest's writes are made
// by QEMU's monitor, through the disk that the guest has.
func instant(name string, backends ...string) domain {
	var disks []disk
	for i, backend := range backends {
		disks = append(disks, disk{"vd" + string(rune('a'+i)), backend, name})
	}
	return named(name, disks...)
}

// defined defines the domain and binds its disks.
func (m machine) defined(d domain) domain {
	m.Helper()
	m.write(d.file(), d.plain(), 0o600)
	m.virsh("define", d.file())
	args := []string{"domain", "apply"}
	for _, disk := range d.disks {
		binding := disk.target + "=" + disk.backend
		if disk.backend != onTemplate {
			binding += ",fill=instant"
		}
		args = append(args, "--local", binding)
		want := m.wants(d, disk.target)
		m.run("mkdir", "-p", filepath.Dir(want))
		m.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.source(), want)
	}
	m.run("diskhook", append(args, d.name)...)
	return d
}

// wants is the file with what the guest must find on a disk.
func (m machine) wants(d domain, target string) string {
	return filepath.Join("/srv/want", d.name+"-"+target)
}

// wrote notes a write that has been flushed, also for the time after a power cut.
func (m machine) wrote(d domain, target string, b byte, offset int64) {
	m.Helper()
	want := m.wants(d, target)
	m.writes(want, b, offset)
	m.run("sync", want)
}

// guestWrites writes 64 KiB to a disk of a running guest, and flushes them.
func (m machine) guestWrites(d domain, target string, b byte, offset int64) {
	m.Helper()
	for _, command := range []string{fmt.Sprintf("write -P %d %d 64k", b, offset), "flush"} {
		said := m.virsh("qemu-monitor-command", d.name, "--hmp",
			fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "%s"`, target[2]-'a', command))
		if strings.Contains(said, "rror") || strings.Contains(said, "failed") {
			m.Fatalf("%s: disk %s: %s: %s", d.name, target, command, said)
		}
	}
	m.wrote(d, target, b, offset)
}

// asDefined writes down what libvirt would give to the hook at a start.
func (m machine) asDefined(d domain) {
	m.Helper()
	m.write(d.file(), m.virsh("dumpxml", "--inactive", "--security-info", d.name), 0o600)
}

// finds starts a domain that is shut off, up to its emulator, and wants on each
// disk what its guest has written: formats are what the disks must be then, in
// their order.
func (m machine) finds(d domain, formats ...string) {
	m.Helper()
	m.asDefined(d)
	m.started(d)
	for i, disk := range d.disks {
		r := m.receipt(d.id, disk.target)
		if r == nil || r.Format() != formats[i] {
			m.Fatalf("%s: disk %s: receipt %+v, want %s", d.name, disk.target, r, formats[i])
		}
		m.run("qemu-img", "compare", "-q", "-f", formats[i], "-F", "raw", d.link(disk.target), m.wants(d, disk.target))
	}
	m.stopped(d)
	if lv := m.run("lvs", "--noheadings", "-o", "lv_name", "-S", "lv_active=active && lv_name=~"+d.id, "ovirt-local"); lv != "" {
		m.Errorf("%s: active after it has stopped: %s", d.name, lv)
	}
}

// isRaw wants a disk that is raw for good: in its definition, by its receipt,
// and with no other volume.
func (m machine) isRaw(d domain, target string) {
	m.Helper()
	r := m.receipt(d.id, target)
	if r == nil || r.Overlay != nil || r.Pivot != nil || r.Name != d.copyName(target)+"_raw" {
		m.Errorf("%s: disk %s: receipt %+v", d.name, target, r)
	}
	if volumes := m.run("lvs", "--noheadings", "-o", "lv_name", "-S", "lv_name=~"+d.copyName(target), "ovirt-local"); volumes != d.copyName(target)+"_raw" {
		m.Errorf("%s: disk %s: the volumes %s", d.name, target, volumes)
	}
	_, devices, _ := strings.Cut(m.virsh("dumpxml", "--inactive", d.name), "<devices>")
	for element := range strings.SplitSeq(devices, "<disk ") {
		if strings.Contains(element, "dev='"+target+"'") && (!strings.Contains(element, "type='raw'") || !strings.Contains(element, "dev='"+d.link(target)+"'")) {
			m.Errorf("%s: disk %s is defined as %s", d.name, target, element)
		}
	}
}

// killed kills the emulator.
func (m machine) killed(d domain) {
	m.Helper()
	pid, err := os.ReadFile("/run/libvirt/qemu/" + d.name + ".pid")
	m.must(err)
	m.run("kill", "-KILL", strings.TrimSpace(string(pid)))
	m.within(d.name+" is shut off", func() bool { return m.virsh("domstate", d.name) == "shut off" })
	m.within(d.name+" is released", func() bool { return !exists(filepath.Dir(d.link("vda"))) })
}

// settles begins to settle a disk and returns when a part of it is done, or the
// failpoint, if there is one, is passed. stop kills it.
func (m machine) settles(d domain, target, failpoint string, args ...string) (stop func()) {
	m.Helper()
	log := filepath.Join("/run", d.name+"-"+target)
	cmd := exec.CommandContext(m.Context(), "./diskhook.failpoints", append(append([]string{"local", "settle"}, args...), d.name, target)...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = append(os.Environ(), "DISKHOOK_FAILPOINT_LOG="+log)
	reached := func() bool { return copied(d.id, target) > 0 }
	if failpoint != "" {
		cmd.Env = append(cmd.Env, "DISKHOOK_FAILPOINT="+failpoint+"=sleep:1h")
		reached = func() bool {
			passed, _ := os.ReadFile(log)
			return strings.Contains(string(passed), failpoint+"\n")
		}
	}
	m.must(cmd.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	m.within(fmt.Sprintf("%s: disk %s: settle %q gets to %q", d.name, target, args, failpoint), func() bool {
		select {
		case <-ended:
			m.Fatalf("%s: disk %s: settle %q ended before %q: %s", d.name, target, args, failpoint, &said)
		default:
		}
		return reached()
	})
	return func() {
		_ = cmd.Process.Kill()
		<-ended
	}
}

// instantStart: a guest on overlays in volumes, one of them on a template, whose
// emulator is killed while one is settled, and that goes over to raw volumes
// while it runs.
func instantStart(m machine) {
	m.run("systemctl", "start", "libvirtd")
	m.configured(map[string]string{"local.cache": `"auto"`})
	d := m.defined(instant("instant", "lvm", "lvmthin", onTemplate))
	m.virsh("start", d.name)
	for _, disk := range d.disks {
		r := m.receipt(d.id, disk.target)
		if template := disk.backend == onTemplate; r.Unsettled() == template || r.OnTemplate() != template || !r.Used {
			m.Fatalf("disk %s: receipt %+v", disk.target, r)
		}
		m.guestWrites(d, disk.target, 0x77, 3<<20)
	}
	if used, err := strconv.ParseFloat(m.lv(d.copyName("vdb"), "data_percent")[0], 64); err != nil || used > 25 {
		m.Errorf("the thin overlay takes %v %% of its size, %v", used, err)
	}
	templates := m.templateVolumes()
	if len(templates) != 1 {
		m.Fatalf("templates %v", templates)
	}
	if lv := m.lv(templates[0], "lv_permissions", "lv_device_open"); lv[0] != "read-only" || lv[1] != "open" {
		m.Errorf("the template of a disk that runs: %q", lv)
	}

	// Where QEMU does not go on, the settling does without it.
	stop := m.settles(d, "vda", "", "--rate", crawling)
	m.guestWrites(d, "vda", 0x78, 7<<20)
	stop()
	m.killed(d)
	m.run("diskhook", "local", "settle", d.name, "vda")
	if m.receipt(d.id, "vda").Unsettled() {
		m.Error("it is not settled")
	}
	m.finds(d, imagecheck.QCOW2, imagecheck.QCOW2, imagecheck.QCOW2)

	m.virsh("start", d.name)
	m.guestWrites(d, "vda", 0x79, 5<<20)
	m.run("diskhook", "local", "settle", d.name, "vdb")
	for i, disk := range d.disks {
		m.run("diskhook", "local", "settle", "--raw", d.name, disk.target)
		m.isRaw(d, disk.target)
		if to, err := os.Readlink(d.link(disk.target)); err != nil || to != d.node(disk.target)+"_raw" {
			m.Errorf("disk %s: its path leads to %s, %v", disk.target, to, err)
		}
		m.guestWrites(d, disk.target, byte(0x80+i), 6<<20)
	}
	if state := m.virsh("domstate", d.name); state != "running" {
		m.Errorf("it is %s", state)
	}
	m.killed(d)
	m.finds(d, imagecheck.Raw, imagecheck.Raw, imagecheck.Raw)
}
