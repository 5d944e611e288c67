// SPDX-License-Identifier: Apache-2.0

package vdsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/hooks/hooktest"
	"diskhook/hooks/privileged"
	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
)

// sudo hands the words for diskhook-helper to a server in place of running it.
type sudo struct {
	*privileged.Server
	verbs []string
}

func (s *sudo) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	argv := cmd.Argv()
	s.verbs = append(s.verbs, strings.Join(argv, " "))
	var out, log bytes.Buffer
	if !s.Serve(ctx, cmd.Args[2:], cmd.Stdin, &out, &log) {
		return command.Result{Stdout: out.Bytes()}, &command.Error{Argv: argv, Code: 1}
	}
	return command.Result{Stdout: out.Bytes()}, nil
}

// volumeWorld is a host whose hooks run as vdsm, with storage and the volumes
// fast (NVMe), lun (iSCSI, multipath), nfs and lost, which the storage lacks.
type volumeWorld struct {
	*hooktest.World
	local   *hooktest.Local
	storage *connectortest.World
	service *managed.Service
	sudo    *sudo
}

func newVolumes(t *testing.T) *volumeWorld {
	t.Helper()
	w, local := fake(t)
	storage, err := connectortest.New(w.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(w.Path("run/udev"), 0o755), storage.Change(func(s *connectortest.Storage) {
		s.NVMe = map[string]*connectortest.Subsystem{"nqn.s": {Portals: []string{"tcp 1.1.1.1 4420"}, Namespaces: map[int]connectortest.Namespace{1: {UUID: "u-1", Sectors: 2048}}}}
		s.ISCSI = map[string]*connectortest.Target{"iqn.x:t": {Portals: []string{"10.0.0.5:3260"}, Username: "u", Password: "canary-chap", LUNs: map[uint64]connectortest.LUN{1: {Designator: "naa.6001405aa", Sectors: 2048}}}}
		s.NFS = map[string]map[string]int{"nas:/x": {"v": 4096}}
	})); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	service := &managed.Service{Layout: w.Layout, Database: w.Path("managed.db"), Host: storage.Host(log), Log: log, Boot: storage.Boot}
	namespace := `{"driver_volume_type":"nvmeof","data":{"target_portal":"1.1.1.1","target_port":4420,"nqn":"nqn.s","ns_id":%d,"discard":true}}`
	for id, connection := range map[string]string{
		"fast": fmt.Sprintf(namespace, 1), "lost": fmt.Sprintf(namespace, 3),
		"lun": `{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.x:t","target_lun":1,"auth_method":"CHAP","auth_username":"u","auth_password":"canary-chap","discard":true}}`,
		"nfs": `{"driver_volume_type":"nfs","data":{"export":"nas:/x","name":"v"}}`,
	} {
		if err := service.Define(t.Context(), id, []byte(connection)); err != nil {
			t.Fatal(err)
		}
	}
	owner := &localdisk.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	if os.Geteuid() == 0 {
		owner = &localdisk.Owner{UID: 36, GID: 107}
	}
	s := &sudo{Server: &privileged.Server{Service: &localdisk.Service{Layout: w.Layout, Log: log, Owner: owner}, Volumes: service}}
	w.Volumes = privileged.NewClient(s, w.Layout, w.Config).Volumes()
	return &volumeWorld{w, local, storage, service, s}
}

// attached are the volumes that are, each with the VM that has it.
func (w *volumeWorld) attached(t *testing.T) []string {
	t.Helper()
	all, err := w.service.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, v := range all {
		if v.Attached {
			ids = append(ids, strings.TrimSpace(v.ID+" "+v.Domain))
		}
	}
	return ids
}

// helped are the verbs that the helper was asked for.
func (w *volumeWorld) helped() []string {
	asked := w.sudo.verbs
	w.sudo.verbs = nil
	return asked
}

const asRoot = "sudo -n " + privileged.Helper + " volume "

// TestVolumes: the start attaches what the XML names and the property binds,
// by the helper, writes what Engine leaves out and not a byte more; the end
// takes away what the start attached.
func TestVolumes(t *testing.T) {
	w := newVolumes(t)
	before, after := w.Fixture("vdsm/volumes-before.xml"), string(w.Fixture("vdsm/volumes-after.xml"))
	bound := map[string]string{"volume": image + "=lun"}
	if _, err := w.service.Attach(t.Context(), managed.Request{ID: "nfs"}); err != nil {
		t.Fatal(err)
	}
	got, err := call(t, w.World, "before_vm_start", before, bound)
	if err != nil {
		t.Fatal(failure.Line(err))
	}
	if diff := cmp.Diff(after, string(got)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"fast " + vmID, "lun " + vmID, "nfs " + vmID}, w.attached(t)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{asRoot + "node", asRoot + "node", asRoot + "node", asRoot + "attach", asRoot + "attach", asRoot + "attach"}, w.helped()); diff != "" {
		t.Error(diff)
	}
	if lines := strings.Join(w.storage.Lines(), "\n"); !strings.Contains(lines, "udevadm control --reload") || strings.Contains(lines, "canary") {
		t.Error(lines)
	}
	rule, err := os.ReadFile(w.Path("run/udev/rules.d/99-diskhook-volume-lun.rules"))
	o := w.sudo.Service.Owner
	if want := fmt.Sprintf(`ACTION!="remove", SUBSYSTEM=="block", KERNEL=="dm-0", RUN+="/usr/bin/chown %d:%d $env{DEVNAME}"`+"\n", o.UID, o.GID); err != nil || string(rule) != want {
		t.Errorf("%v %s", err, rule)
	}

	// VDSM was restarted, or another hook ran first.
	again, err := call(t, w.World, "before_vm_start", got, bound)
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("again: %v", err)
	}
	if _, err := call(t, w.World, "before_vm_migrate_source", got, bound); !errors.Is(err, failure.Precondition) || !strings.Contains(failure.Line(err), "volume define --connection-info FILE fast") {
		t.Errorf("migration: %v", err)
	}

	w.helped()
	if _, err := call(t, w.World, "after_vm_destroy", got, bound); err != nil {
		t.Fatal(failure.Line(err))
	}
	if diff := cmp.Diff([]string{"nfs"}, w.attached(t)); diff != "" {
		t.Errorf("after the end: %s", diff)
	}
	if diff := cmp.Diff([]string{asRoot + "release", asRoot + "release", asRoot + "release", asRoot + "release-rest"}, w.helped()); diff != "" {
		t.Error(diff)
	}
	if rest := w.Files("run/udev/rules.d"); len(rest) > 0 {
		t.Errorf("rules stay: %v", rest)
	}
}

// TestVolumeOfImage: where VDSM prepares the image that a volume stands for it
// hears of the volume, so that it does not look after the image.
func TestVolumeOfImage(t *testing.T) {
	w := newVolumes(t)
	bound := map[string]string{"volume": image + "=lun"}
	got, err := call(t, w.World, "after_disk_prepare", w.Fixture("vdsm/disk-file.json"), bound)
	if err != nil {
		t.Fatal(failure.Line(err))
	}
	if diff := cmp.Diff(expected(t, w.World, w.service.Link("lun"), "block"), string(got)); diff != "" {
		t.Error(diff)
	}
	// The start fails elsewhere, and nothing but the property tells.
	if _, err := call(t, w.World, "after_vm_destroy", w.Fixture("vdsm/engine.xml"), bound); err != nil {
		t.Error(failure.Line(err))
	}
	if left := w.attached(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestVolumeRefusals: nothing is attached then that was not before.
func TestVolumeRefusals(t *testing.T) {
	w := newVolumes(t)
	before := string(w.Fixture("vdsm/volumes-before.xml"))
	link := w.service.Link
	for name, c := range map[string]struct{ old, now, volume, want string }{
		"not defined":      {link("nfs"), link("nosuch"), "", "volume nosuch: not defined on this host"},
		"not there":        {link("nfs"), link("lost"), "", "disk sdc: volume lost: "},
		"elsewhere":        {link("nfs"), "/tmp/run/diskhook/volumes/nfs", "", "is not where this host has its volumes"},
		"two words":        {link("nfs"), link("nfs"), "sdc=lun", "its source names volume nfs, and the property says lun"},
		"one for two":      {link("nfs"), link("fast"), "", "disks sda and sdc are both volume fast"},
		"no such disk":     {"", "", "sdz=lun", "no disk has this target or serial"},
		"managed already":  {"", "", "sdd=lun", "it is a managed volume"},
		"a word":           {"", "", "lun", `property volume: "lun" is not DISK=ID`},
		"a LUN for guests": {`type="block" device="disk">` + "\n      <target dev=\"sdc\"", `type="block" device="lun">` + "\n      <target dev=\"sdc\"", "", "take the disk out of the property, or see which hook wrote it"},
	} {
		xml := strings.Replace(before, c.old, c.now, 1)
		properties := map[string]string{"volume": c.volume}
		if c.volume == "" {
			delete(properties, "volume")
		}
		_, err := call(t, w.World, "before_vm_start", []byte(xml), properties)
		if err == nil || !strings.Contains(failure.Line(err), c.want) || failure.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if left := w.attached(t); left != nil {
			t.Errorf("%s: left: %v", name, left)
		}
	}
}

// TestVolumeHotplug: a disk comes and goes while the VM runs.
func TestVolumeHotplug(t *testing.T) {
	w := newVolumes(t)
	snippet := `<disk device="disk" snapshot="no" type="file"><source file="/rhev/x"/><target bus="scsi" dev="sdq"/><serial>` + image + `</serial><driver cache="none" name="qemu"/></disk>`
	snippet = strings.Replace(snippet, `file="/rhev/x"`, `file="`+w.service.Link("fast")+`"`, 1)
	got, err := call(t, w.World, "before_disk_hotplug", []byte(snippet), nil)
	if err != nil {
		t.Fatal(failure.Line(err))
	}
	want := `<disk device="disk" snapshot="no" type="block"><source dev="` + w.service.Link("fast") + `"/><target bus="scsi" dev="sdq"/><serial>` + image + `</serial><driver cache="none" name="qemu" type="raw" io="native" error_policy="stop" rerror_policy="stop" discard="unmap"/></disk>`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"fast " + vmID}, w.attached(t)); diff != "" {
		t.Error(diff)
	}
	if _, err := call(t, w.World, "after_disk_hotunplug", got, nil); err != nil {
		t.Error(failure.Line(err))
	}
	if left := w.attached(t); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestVolumeSuspended: memory goes with the volume wherever that is attached,
// so no mark is made and none asked for.
func TestVolumeSuspended(t *testing.T) {
	w := newVolumes(t)
	xml := bytes.Replace(w.Fixture("vdsm/volumes-before.xml"), []byte("volumes/nfs"), []byte("volumes/lun"), 1)
	for _, point := range []string{"before_vm_start", "after_vm_hibernate", "after_vm_destroy", "before_vm_start", "before_vm_dehibernate", "after_vm_dehibernate"} {
		if _, err := call(t, w.World, point, xml, nil); err != nil {
			t.Fatalf("%s: %s", point, failure.Line(err))
		}
		if running := point == "before_vm_start"; running && len(w.attached(t)) != 2 || point == "after_vm_destroy" && w.attached(t) != nil {
			t.Errorf("%s: %v", point, w.attached(t))
		}
	}
	if slices.ContainsFunc(w.local.Calls, func(c string) bool { return strings.HasPrefix(c, "mark-saved") }) {
		t.Errorf("marked: %q", w.local.Calls)
	}
	// It cannot be resumed where the volume is not known, and nothing stays.
	if _, err := call(t, w.World, "after_vm_destroy", xml, nil); err != nil {
		t.Fatal(err)
	}
	unknown := bytes.Replace(xml, []byte("volumes/lun"), []byte("volumes/nosuch"), 1)
	if _, err := call(t, w.World, "before_vm_dehibernate", unknown, nil); err == nil || !strings.Contains(failure.Line(err), "volume nosuch: not defined") {
		t.Errorf("resumed: %v", err)
	}
}
