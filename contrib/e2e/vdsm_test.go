// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
)

func id(name string) string { return uuid.NewSHA1(uuid.NameSpaceURL, []byte(name)).String() }

// The storage domain of all images, on an export that root may not read.
var (
	poolID   = id("pool")
	domainID = id("storage domain")
	mount    = "/rhev/data-center/mnt/127.0.0.1:_srv_export"
)

// vm is a VM of oVirt with one disk.
type vm struct{ name, image string }

func (v vm) id() string      { return id("vm " + v.name) }
func (v vm) imageID() string { return id("image " + v.image) }
func (v vm) leaf() string    { return id("volume " + v.image) }
func (v vm) node() string    { return "/dev/ovirt-local/" + v.leaf() }

// path is that of a volume of the VM's image, as Engine writes it.
func (v vm) path(volume string) string {
	return filepath.Join("/rhev/data-center", poolID, domainID, "images", v.imageID(), volume)
}

// asVDSM runs a program as vdsm, with an environment like vdsmd's.
func (m machine) asVDSM(env []string, stdin, name string, args ...string) result {
	m.Helper()
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		m.must(err)
		return uint32(n)
	}
	vdsm, err := user.Lookup("vdsm")
	m.must(err)
	qemu, err := user.LookupGroup("qemu")
	m.must(err)
	from := time.Now()
	cmd := exec.CommandContext(m.Context(), name, args...)
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/var/lib/vdsm", "USER=vdsm"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
		Uid: number(vdsm.Uid), Gid: number(vdsm.Gid), Groups: []uint32{number(vdsm.Gid), number(qemu.Gid)},
	}}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		m.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), string(out), time.Since(from)}
}

// point calls a hook point as VDSM does, with a file of its making, and
// returns how that ended and what the file holds then. properties are the VM's.
func (m machine) point(v vm, name string, properties []string, content string) (result, string) {
	m.Helper()
	variable := "_hook_domxml"
	if name == "after_disk_prepare" {
		variable = "_hook_json"
	}
	file, err := os.CreateTemp("/tmp", "tmp")
	m.must(err)
	defer os.Remove(file.Name())
	_, err = file.WriteString(content)
	m.must(err)
	m.must(file.Close())
	m.run("chown", "vdsm:kvm", file.Name())
	env := append([]string{"vmId=" + v.id(), variable + "=" + file.Name()}, properties...)
	r := m.asVDSM(env, "", "taskset", "--cpu-list", "0-1", "/usr/libexec/vdsm/hooks/"+name+"/50_diskhook")
	after, err := os.ReadFile(file.Name())
	m.must(err)
	if owner := m.run("stat", "-c", "%U %a", file.Name()); owner != "vdsm 600" {
		m.Errorf("%s: the file is %s", name, owner)
	}
	return r, string(after)
}

// prepared is the disk as VDSM hands it to after_disk_prepare.
func (v vm) prepared(volume string) string {
	return fmt.Sprintf(`{"device": "disk", "diskType": "file", "poolID": %q, "domainID": %q, "imageID": %q, "volumeID": %q,
 "path": %q, "discard": false, "format": "cow", "propagateErrors": "off", "cache": "none", "iface": "scsi", "name": "sda", "serial": %q, "index": 0}`,
		poolID, domainID, v.imageID(), volume, v.path(volume), v.imageID())
}

// xml is the VM as VDSM hands it to before_vm_start, its disk where it says.
func (v vm) xml(kind, attribute, path string) string {
	return fmt.Sprintf(`<domain type="kvm" xmlns:ovirt-vm="http://ovirt.org/vm/1.0">
  <name>%s</name>
  <uuid>%s</uuid>
  <devices>
    <disk snapshot="no" type="%s" device="disk">
      <target dev="sda" bus="scsi"/>
      <source %s="%s"><seclabel model="dac" type="none" relabel="no"/></source>
      <driver name="qemu" io="threads" type="raw" error_policy="stop" cache="none"/>
      <serial>%s</serial>
    </disk>
  </devices>
  <metadata><ovirt-vm:vm><ovirt-vm:device devtype="disk" name="sda">
    <ovirt-vm:poolID>%s</ovirt-vm:poolID><ovirt-vm:domainID>%s</ovirt-vm:domainID>
    <ovirt-vm:imageID>%s</ovirt-vm:imageID><ovirt-vm:volumeID>%s</ovirt-vm:volumeID>
  </ovirt-vm:device></ovirt-vm:vm></metadata>
</domain>
`, v.name, v.id(), kind, attribute, path, v.imageID(), poolID, domainID, v.imageID(), v.leaf())
}

// prepare calls after_disk_prepare, which must succeed, and wants the disk on
// its volume.
func (m machine) prepare(v vm, properties ...string) result {
	m.Helper()
	r, after := m.point(v, "after_disk_prepare", properties, v.prepared(v.leaf()))
	if r.code != 0 {
		m.Fatalf("after_disk_prepare: exit code %d: %s", r.code, r.output)
	}
	var want, got map[string]any
	m.must(json.Unmarshal([]byte(v.prepared(v.leaf())), &want))
	want["path"], want["format"], want["diskType"] = v.node(), "raw", "block"
	m.must(json.Unmarshal([]byte(after), &got))
	if a, b := fmt.Sprint(got), fmt.Sprint(want); a != b {
		m.Errorf("the disk is\n%s, want\n%s", a, b)
	}
	m.ownedByVDSM(v)
	return r
}

func (m machine) ownedByVDSM(v vm) {
	m.Helper()
	if owner := m.run("stat", "-L", "-c", "%U:%G", v.node()); owner != "vdsm:qemu" {
		m.Errorf("%s belongs to %s", v.node(), owner)
	}
}

// refusedPrepare wants a veto, and the disk's JSON as it was.
func (m machine) refusedPrepare(v vm, volume string, properties []string, words ...string) {
	m.Helper()
	m.unchanged(func() {
		r, after := m.point(v, "after_disk_prepare", properties, v.prepared(volume))
		m.refused(r, 2, words...)
		if after != v.prepared(volume) {
			m.Errorf("a refused disk became %s", after)
		}
	})
}

// sameVolume compares, as vdsm, what the copy holds with its source.
func (m machine) sameVolume(v vm) {
	m.Helper()
	r := m.asVDSM(nil, "", "qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", v.node(), v.path(v.leaf()))
	if r.code != 0 {
		m.Errorf("the copy differs from its source: %s", r.output)
	}
	m.bytesAre(v.node(), oddSize, 0, 0)
}
