// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// disk is one disk of a domain: an image of the shared storage, the name of a
// chain or of a raw file, and the backend of its local copy. An image with an
// absolute path is elsewhere; below /dev it is a raw block device.
type disk struct{ target, backend, image string }

func (d disk) device() bool { return strings.HasPrefix(d.image, "/dev/") }

func (d disk) format() string {
	if d.device() || strings.HasSuffix(d.image, ".raw") {
		return "raw"
	}
	return "qcow2"
}

func (d disk) source() string {
	path := d.image
	if !filepath.IsAbs(path) {
		path = filepath.Join(shared, path)
	}
	if d.format() == "raw" {
		return path
	}
	return filepath.Join(path, "top.qcow2")
}

// domain is a domain with bound disks.
type domain struct {
	name, id string
	disks    []disk
}

// named is the domain with that name; its UUID comes from the name, so that it
// is the same in all boots.
func named(name string, disks ...disk) domain {
	return domain{name, uuid.NewSHA1(uuid.NameSpaceURL, []byte(name)).String(), disks}
}

func (d domain) file() string { return "/root/domains/" + d.name + ".xml" }

// link is the path that the domain's XML names.
func (d domain) link(target string) string {
	return filepath.Join("/run/diskhook/disks", d.id, target)
}

// copyName is the volume's name.
func (d domain) copyName(target string) string { return "dh_" + d.id + "_" + target }

func (d domain) node(target string) string { return "/dev/ovirt-local/" + d.copyName(target) }

// plain is the domain's XML before anything is bound.
func (d domain) plain() string {
	var disks strings.Builder
	for _, disk := range d.disks {
		kind, attribute := "file", "file"
		if disk.device() {
			kind, attribute = "block", "dev"
		}
		fmt.Fprintf(&disks, `
    <disk type='%s' device='disk'>
      <driver name='qemu' type='%s' cache='none' discard='unmap'/>
      <source %s='%s'/>
      <target dev='%s' bus='virtio'/>
    </disk>`, kind, disk.format(), attribute, disk.source(), disk.target)
	}
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <uuid>%s</uuid>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>%s
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
`, d.name, d.id, &disks)
}

// bind writes the domain's XML with its disks bound, as `diskhook rewrite`
// prints it. The copies are made by the first start.
func (m machine) bind(d domain) domain {
	m.Helper()
	args := []string{"rewrite"}
	for _, disk := range d.disks {
		args = append(args, "--bind", disk.target+":local="+disk.backend+",fill=start")
	}
	m.write(d.file(), d.plain(), 0o600)
	m.write(d.file(), m.run("diskhook", append(args, d.file())...), 0o600)
	return d
}

// hookCommand is the hook as libvirt runs it.
func (m machine) hookCommand(d domain, op, subOp string) *exec.Cmd {
	m.Helper()
	xml, err := os.ReadFile(d.file())
	m.must(err)
	hook := exec.CommandContext(m.Context(), "/etc/libvirt/hooks/qemu.d/50-diskhook", d.name, op, subOp, "-")
	hook.Stdin = strings.NewReader(string(xml))
	hook.Env = []string{"PATH=/nowhere", "HOME=/nowhere"}
	return hook
}

// start calls the hook as libvirt does when the domain starts.
func (m machine) start(d domain) result {
	m.Helper()
	xml, err := os.ReadFile(d.file())
	m.must(err)
	return m.try(string(xml), "/etc/libvirt/hooks/qemu.d/50-diskhook", d.name, "prepare", "begin", "-")
}

// started starts a domain that must start.
func (m machine) started(d domain) result {
	m.Helper()
	r := m.start(d)
	if r.code != 0 || r.output != "" {
		m.Fatalf("start of %s: exit code %d: %s", d.name, r.code, r.output)
	}
	return r
}

// vetoed starts a domain that must not start.
func (m machine) vetoed(d domain, words ...string) result {
	m.Helper()
	r := m.start(d)
	m.isVeto(d, r, words...)
	return r
}

// isVeto wants a start to have been refused, in one line.
func (m machine) isVeto(d domain, r result, words ...string) {
	m.Helper()
	m.refused(r, 1, append(words, "domain "+d.name)...)
	if n := strings.Count(strings.TrimSpace(r.output), "\n"); n != 0 {
		m.Errorf("a veto of %d lines: %s", n+1, r.output)
	}
}

// stopped calls the hook as libvirt does when the domain has ended.
func (m machine) stopped(d domain) {
	m.Helper()
	hook := m.hookCommand(d, "release", "end")
	if out, err := hook.CombinedOutput(); err != nil || len(out) > 0 {
		m.Fatalf("release of %s: %v: %s", d.name, err, out)
	}
	for _, disk := range d.disks {
		if exists(d.link(disk.target)) || exists(d.node(disk.target)) {
			m.Errorf("%s: disk %s is still there after the domain has stopped", d.name, disk.target)
		}
	}
}

// same wants all disks of a started domain to have their sources' content, and
// zeros behind it.
func (m machine) same(d domain) {
	m.Helper()
	m.sameAsSource(d)
	for _, disk := range d.disks {
		m.bytesAre(d.link(disk.target), oddSize, 0, 0)
	}
}

// receipt is what diskhook keeps of a disk; nil is none.
func (m machine) receipt(domain, key string) *localdisk.Receipt {
	m.Helper()
	text, err := os.ReadFile(filepath.Join("/var/lib/diskhook/receipts", domain, key+".json"))
	if os.IsNotExist(err) {
		return nil
	}
	m.must(err)
	var r localdisk.Receipt
	m.must(json.Unmarshal(text, &r))
	return &r
}

// sameAsSource wants all disks of a started domain to read as their sources do.
func (m machine) sameAsSource(d domain) {
	m.Helper()
	for _, disk := range d.disks {
		m.run("qemu-img", "compare", "-q", "-f", "raw", "-F", disk.format(), d.link(disk.target), disk.source())
	}
}

// copied is how many bytes of a disk's copy are there; -1 unless it is being
// filled now.
func copied(domain, key string) int64 {
	st, err := progress.Read(filepath.Join("/run/diskhook/status", domain, key+".json"))
	if err != nil || st.State != progress.Copying {
		return -1
	}
	return st.Done
}
