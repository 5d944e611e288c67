// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// domain is a virtual machine of a test, with a folder for its images.
type domain struct {
	t          *testing.T
	name, uuid string
	dir        string // for its images
	metadata   string // content of <metadata>
	disks      string // <disk> elements
	extra      string // further devices
}

// newDomain makes a domain that is not defined yet. When the test ends it is
// stopped and undefined.
func newDomain(t *testing.T, name string) *domain {
	t.Helper()
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{t: t, name: name, uuid: strings.TrimSpace(string(id))}
	d.dir = filepath.Join(work, "images", d.uuid)
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, verb := range []string{"destroy", "managedsave-remove", "undefine"} {
			_ = try(t, "virsh", "-q", verb, d.uuid)
		}
	})
	return d
}

// bootable is a defined domain with the guest on a raw disk, not bound.
func bootable(t *testing.T, name string) *domain {
	t.Helper()
	d := newDomain(t, name)
	writeImage(t, d.image(), diskImage(false))
	d.disks = diskXML("file", d.image(), "raw", "vda")
	d.define()
	return d
}

// startable is a bootable domain that is bound by hand, with fill=start.
func startable(t *testing.T, name string) *domain {
	t.Helper()
	d := newDomain(t, name)
	writeImage(t, d.image(), diskImage(false))
	d.bind("fill='start'", diskXML("file", d.image(), "raw", "vda"))
	d.define()
	return d
}

// filled is a startable domain whose guest has run once on its copy.
func filled(t *testing.T, name string) *domain {
	t.Helper()
	d := startable(t, name)
	d.start()
	d.boots(1)
	d.destroy()
	return d
}

// image is the path of the domain's raw source.
func (d *domain) image() string { return filepath.Join(d.dir, "disk.raw") }

// link is the stable path of vda, which only the hook makes.
func (d *domain) link() string { return "/run/diskhook/disks/" + d.uuid + "/vda" }

// copy is the file that a ready copy of vda is in.
func (d *domain) copy() string { return "/var/lib/diskhook/local/dh_" + d.uuid + "_vda.raw" }

func (d *domain) receiptPath() string { return "/var/lib/diskhook/receipts/" + d.uuid + "/vda.json" }

// bind points vda at the stable path and writes the metadata, as apply would.
func (d *domain) bind(attributes, origin string) {
	d.t.Helper()
	d.disks = diskXML("file", d.link(), "raw", "vda")
	d.metadata = fmt.Sprintf(`<dh:disks xmlns:dh='urn:diskhook:1' domain='%s'><dh:disk target='vda' source='%s'>`+
		`<dh:local backend='dir' on-stop='keep' host='%s' %s/><dh:origin>%s</dh:origin></dh:disk></dh:disks>`,
		d.uuid, d.link(), content(d.t, "/etc/machine-id"), attributes, origin)
}

func diskXML(kind, path, format, target string) string {
	attribute := map[string]string{"file": "file", "block": "dev"}[kind]
	return fmt.Sprintf("<disk type='%s' device='disk'><driver name='qemu' type='%s' cache='none'/><source %s='%s'/><target dev='%s' bus='virtio'/></disk>",
		kind, format, attribute, escaped(path), target)
}

func escaped(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		panic(err)
	}
	return b.String()
}

// xml is the definition. The guest speaks on the serial line, into a file.
func (d *domain) xml() string {
	metadata := d.metadata
	if metadata != "" {
		metadata = "  <metadata>" + metadata + "</metadata>\n"
	}
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <uuid>%s</uuid>
%s  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    %s
    %s
    <serial type='file'><source path='%s'/></serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
`, escaped(d.name), d.uuid, metadata, d.disks, d.extra, d.serial())
}

func (d *domain) serial() string { return filepath.Join(d.dir, "serial") }

func (d *domain) define() {
	d.t.Helper()
	d.defineAs(d.xml())
}

func (d *domain) defineAs(text string) {
	d.t.Helper()
	path := filepath.Join(d.dir, "domain.xml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
	run(d.t, "virsh", "-q", "define", path)
}

func (d *domain) start()   { d.t.Helper(); run(d.t, "virsh", "-q", "start", d.uuid) }
func (d *domain) destroy() { d.t.Helper(); run(d.t, "virsh", "-q", "destroy", d.uuid) }

func (d *domain) state() string {
	d.t.Helper()
	return run(d.t, "virsh", "-q", "domstate", d.uuid)
}

// dumped is the definition that the next start takes.
func (d *domain) dumped() string {
	d.t.Helper()
	return run(d.t, "virsh", "-q", "dumpxml", "--inactive", d.uuid)
}

// startVetoed starts the domain and wants the hook to refuse that: the last
// line of virsh's message has to hold the words. Nothing may be left running.
func (d *domain) startVetoed(words ...string) string {
	d.t.Helper()
	return d.vetoed([]string{"start", d.uuid}, words...)
}

// vetoed runs a command of virsh that a hook has to refuse.
func (d *domain) vetoed(args []string, words ...string) string {
	d.t.Helper()
	r := try(d.t, "virsh", append([]string{"-q"}, args...)...)
	if r.code == 0 {
		d.t.Fatalf("virsh %s: it worked", args)
	}
	// libvirt prefixes what the hook said by its command line.
	_, said, found := strings.Cut(r.stderr, "unexpected exit status 1: diskhook: ")
	if !found {
		d.t.Fatalf("virsh %s: not a veto of diskhook:\n%s", args, r.stderr)
	}
	said = strings.TrimSpace(said)
	if strings.Contains(said, "\n") {
		d.t.Errorf("virsh %s: more than one line:\n%s", args, said)
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			d.t.Errorf("virsh %s: %q is missing in\n%s", args, word, said)
		}
	}
	return said
}

// boots waits until the guest has said how often guests have run on its disk.
func (d *domain) boots(n int) {
	d.t.Helper()
	said := ""
	eventually(d.t, func() bool {
		b, err := os.ReadFile(d.serial())
		said = string(b)
		return err == nil && said != ""
	}, "the guest says nothing")
	if said != fmt.Sprint(n) {
		d.t.Fatalf("the guest found its disk used %q times, not %d", said, n)
	}
}

// receipt is what the host knows about the copy of vda; nil: nothing.
func (d *domain) receipt() *receipt {
	d.t.Helper()
	b, err := os.ReadFile(d.receiptPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r := new(receipt)
	if err := errors.Join(err, json.Unmarshal(b, r)); err != nil {
		d.t.Fatal(err)
	}
	return r
}

type receipt struct {
	Copy string `json:"copy"`
	Used bool   `json:"used"`
}

// linked checks whether the stable path is there, and leads to the copy.
func (d *domain) linked(want bool) {
	d.t.Helper()
	to, err := os.Readlink(d.link())
	switch {
	case want && (err != nil || to != d.copy()):
		d.t.Errorf("the stable path leads to %q (%v), not to %s", to, err, d.copy())
	case !want && !errors.Is(err, fs.ErrNotExist):
		d.t.Errorf("the stable path is there, and leads to %s (%v)", to, err)
	}
}

// holds checks the content of a raw image, byte by byte.
func holds(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s has %d bytes, not %d", path, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d is %#x, not %#x", path, i, got[i], want[i])
			return
		}
	}
}
