// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/storage/thin/layout"
)

// TestThinDomain has a domain of libvirtd's run on a volume of a thin cluster. The
// host loses its power while it runs.
func TestThinDomain(t *testing.T) {
	host{install: "install", boots: []boot{
		{"thin domain", thinDomain, powerCut},
		{"thin domain after the power cut", thinDomainAgain, inOrder},
	}}.run(t)
}

// The places on the volume: the guest counts its starts on the sector at counterAt, and
// on its n-th writes that sector to wroteAt(n) as well, where nothing was. The rest,
// from the second block on, is as imported.
const (
	counterAt = 512
	thinText  = "the sector that the guest counts on"
	imported  = 4 * mib
)

func wroteAt(n uint16) int64 { return 8*mib + int64(n)*labStep }

// thinGuest is a boot sector, which the BIOS loads at 0x7c00 with the drive in DL.
func thinGuest() []byte {
	const packet = 0x60 // disk address packet: one sector at 0000:7e00, the disk's second one
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xd0, // mov ss, ax
		0xbc, 0x00, 0x7c, // mov sp, 0x7c00
		0xbe, packet, 0x7c, // mov si, packet
		0xb4, 0x42, 0xcd, 0x13, // mov ah, 0x42 (extended read); int 0x13
		0x72, 0x1c, // jc idle
		0xff, 0x06, 0x00, 0x7e, // inc word [0x7e00]
		0xb8, 0x00, 0x43, 0xcd, 0x13, // mov ax, 0x4300 (extended write); int 0x13
		0x72, 0x11, // jc idle
		0xa1, 0x00, 0x7e, // mov ax, [0x7e00]
		0xc1, 0xe0, 0x07, // shl ax, 7 (sectors of labStep)
		0x05, 0x00, 0x40, // add ax, 0x4000 (8 MiB)
		0xa3, packet + 8, 0x7c, // mov [packet+8], ax
		0xb8, 0x00, 0x43, 0xcd, 0x13, // mov ax, 0x4300; int 0x13
		0xf4, 0xeb, 0xfd, // idle: hlt; jmp idle
	}
	image := make([]byte, 512)
	copy(image[:packet], code)
	copy(image[packet:], []byte{0x10, 0, 1, 0, 0x00, 0x7e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0})
	image[510], image[511] = 0x55, 0xaa
	return image
}

// thinImage is the volume's first content.
func thinImage() []byte {
	image := make([]byte, imported)
	copy(image, thinGuest())
	copy(image[counterAt:], counterSector(0))
	for at := int64(labStep); at < imported; at += labStep {
		copy(image[at:], labBlock('i', at))
	}
	return image
}

func counterSector(n uint16) []byte {
	return append(binary.LittleEndian.AppendUint16(nil, n), strings.Repeat(thinText+" ", 512)[:510]...)
}

// onThin is the domain of the test; another names the same volume.
func onThin() domain  { return named("vm", disk{target: "vda", image: "/srv/nothing.raw"}) }
func another() domain { return named("another", disk{target: "vda", image: "/srv/none.raw"}) }

// thinLink is the path that a domain's XML names.
func (d domain) thinLink(target string) string {
	return "/run/diskhook/thin-disks/" + d.id + "/" + target
}

// thinDomain makes a cluster of one host, and runs the domain twice.
func thinDomain(host machine) {
	m := labMachine{machine: host, name: "alpha"}
	m.prepare()
	m.run("vgcreate", "lun", "/dev/vdb")
	m.thin("init-cluster", "--vg", "lun", "--size", "256M", "lab")
	for _, verb := range []string{"on-master", "init-host", "on-join"} {
		m.thin(verb)
	}
	m.must(errors.Join(os.WriteFile("image.raw", thinImage(), 0o600), os.Truncate("image.raw", 64*mib)))
	m.thin("import", "--format", "raw", "--name", "vm", "image.raw")
	m.run("systemctl", "start", "libvirtd")
	d := onThin()
	m.write(d.file(), d.plain(), 0o600)
	m.virsh("define", d.file())
	m.run("diskhook", "domain", "apply", "--thin", "vda=vm", d.name)
	if xml := m.virsh("dumpxml", "--inactive", d.name); !strings.Contains(xml, "<source dev='"+d.thinLink("vda")+"'") {
		m.Errorf("after apply: %s", xml)
	}
	if exists(device("vm")) {
		m.Error("a volume is attached that nobody asked for")
	}

	m.runs(d, 1)
	m.refused(m.try("", "diskhook", "thin", "detach", "vm"), 4, "volume vm", "domain "+d.id+" has it")
	m.ends(d)
	m.runs(d, 2)
	m.stranger(d)
	m.makesLocalCopies()
	m.flush()
	m.cutPower()
}

// stranger is another domain that names the volume, in each of the ways in which it can.
func (m labMachine) stranger(d domain) {
	m.Helper()
	o := another()
	m.write(o.file(), o.plain(), 0o600)
	m.virsh("define", o.file())
	m.refused(m.try("", "diskhook", "domain", "apply", "--thin", "vda=vm", o.name), 4, "volume lab/vm is disk vda of domain "+d.name, "thin clone --cluster lab vm NEW")
	// Whoever does without apply gets no further than the start.
	m.write(o.file(), m.run("diskhook", "rewrite", "--bind", "vda:thin=vm", o.file()), 0o600)
	m.virsh("define", o.file())
	m.refused(m.try("", "virsh", "-q", "-c", "qemu:///system", "start", o.name), 1, "domain "+o.name+": disk vda", "volume vm: domain "+d.id+" has it")
	if exists(o.thinLink("vda")) {
		m.Error("a domain that was refused has its link")
	}
	if state := m.virsh("domstate", d.name); state != "running" {
		m.Errorf("the domain is %s", state)
	}
	m.virsh("undefine", o.name)
}

// thinDomainAgain is the host after the power cut. The volume is still at it, so that
// a start needs its pool alone, and an end the master.
func thinDomainAgain(host machine) {
	m := labMachine{machine: host, name: "alpha"}
	m.prepare()
	m.run("systemctl", "start", "libvirtd")
	d := onThin()
	m.refused(m.try("", "virsh", "-q", "-c", "qemu:///system", "start", d.name), 1, "domain "+d.name+": disk vda", "the pool of this host does not run", "diskhook thin start")
	m.thin("on-join")
	m.runs(d, 3)
	m.hasLocalCopy()
	m.thin("on-master")
	m.ends(d)
	m.endsLocalCopies()
	m.thin("check")
	s := m.status()
	m.thin("on-leave")
	m.thinCheck(s, "lun", m.name)
}

// runs starts the domain, whose guest finds what it wrote before and goes on.
func (m labMachine) runs(d domain, n uint16) {
	m.Helper()
	m.virsh("start", d.name)
	m.within("the guest writes", func() bool { return bytes.Equal(m.sector(wroteAt(n)), counterSector(n)) })
	m.counts(n)
	m.holds("vm", 'i', labStep, imported)
}

// ends destroys the domain, which gives the volume back.
func (m labMachine) ends(d domain) {
	m.Helper()
	m.virsh("destroy", d.name)
	m.within("release", func() bool { return !exists(d.thinLink("vda")) && !exists(device("vm")) })
}

// counts wants the guest to have counted up to n, and nothing beside what it wrote.
func (m labMachine) counts(n uint16) {
	m.Helper()
	if got := m.sector(counterAt); !bytes.Equal(got, counterSector(n)) {
		m.Errorf("the guest counts on %q…, want %d", got[:16], n)
	}
	for i := range n {
		if got := m.sector(wroteAt(i + 1)); !bytes.Equal(got, counterSector(i+1)) {
			m.Errorf("start %d wrote %q…", i+1, got[:16])
		}
		m.bytesAre(device("vm"), wroteAt(i+1)+512, wroteAt(i+2), 0)
	}
}

// sector reads past the page cache, as QEMU writes.
func (m labMachine) sector(at int64) []byte {
	m.Helper()
	v, err := layout.Open(device("vm"), true)
	m.must(err)
	defer v.Close()
	b := make([]byte, 512)
	_, err = v.ReadAt(b, at)
	m.must(err)
	return b
}

// flush is the guest's: what it flushed is there after a power cut.
func (m labMachine) flush() {
	m.Helper()
	f, err := os.OpenFile(device("vm"), os.O_RDWR, 0)
	m.must(err)
	defer f.Close()
	m.must(f.Sync())
}
