// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector"
	"diskhook/storage/managed/connector/connectortest"
)

func coded(t *testing.T, err error, want *managed.Code) {
	t.Helper()
	if got := managed.CodeOf(err); got != want {
		t.Errorf("code %v of %v, want %d", got, err, want.Number)
	}
}

// What VDSM's own tests ask of attach, detach and volumes_info.
func TestAsVDSM(t *testing.T) {
	h := newHome(t)
	if h.info() != "[]" || h.info("nobody") != "[]" {
		t.Error(h.info())
	}
	must(t, h.Detach(t.Context(), "v1", "")) // unknown
	a, err := h.attach("v1", iscsi)
	must(t, err)
	want := managed.Attached{
		ID: "v1", Path: h.Dir + "/dev/mapper/36001405aa", ManagedPath: h.Dir + "/run/diskhook/volumes/v1", Block: true,
		Attachment: []byte(`{"multipath_id":"36001405aa","path":"` + h.Dir + `/dev/dm-0","scsi_wwn":"36001405aa","type":"block"}`),
	}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Error(diff)
	}
	if got := h.path("v1"); got != "/dev/mapper/36001405aa" {
		t.Error(got)
	}

	h.Forget()
	_, err = h.attach("v1", " "+iscsi+"\n") // the same in other words
	coded(t, err, managed.AlreadyAttached)
	if !strings.Contains(err.Error(), `vol_id=v1 path=`) || !errors.Is(err, failure.Conflict) {
		t.Error(err)
	}
	_, err = h.attach("v1", strings.ReplaceAll(iscsi, `"target_lun":1`, `"target_lun":2`))
	coded(t, err, managed.ConnectionMismatch)
	if lines := h.Lines(); lines != nil {
		t.Errorf("ran %v", lines)
	}

	const entry = `{"vol_id":"v1","connection_info":{"data":{"auth_method":"CHAP","auth_password":"***","auth_username":"u","target_iqn":"iqn.x:t","target_lun":1,"target_portal":"10.0.0.5:3260"},"driver_volume_type":"iscsi"},` +
		`"path":"/dev/mapper/36001405aa","attachment":{"multipath_id":"36001405aa","path":"/dev/dm-0","scsi_wwn":"36001405aa","type":"block"},"exists":true}`
	if diff := cmp.Diff("["+entry+"]", h.info("nobody", "v1")); diff != "" {
		t.Error(diff)
	}
	must(t, os.Remove(h.Dir+"/dev/mapper/36001405aa"))
	if diff := cmp.Diff("["+strings.ReplaceAll(entry, `"exists":true`, `"exists":false`)+"]", h.info()); diff != "" {
		t.Error(diff)
	}
	must(t, os.Symlink("../dm-0", h.Dir+"/dev/mapper/36001405aa"))
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
}

func TestUnsupportedDevices(t *testing.T) {
	for name, connection := range map[string]string{"iscsi": iscsi, "fibre_channel": fc} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.Service.Host.NeedMultipath = true
			h.change(func(s *connectortest.Storage) { s.Blacklist = []string{"36001405aa"} })
			_, err := h.attach("v1", connection)
			coded(t, err, managed.UnsupportedDevice)
			h.clean()
			h.change(func(s *connectortest.Storage) { s.Multipathd = false })
			_, err = h.attach("v1", connection)
			coded(t, err, managed.UnsupportedDevice)
			h.clean()
		})
	}
}

// Whatever is wrong with a request, nothing is connected.
func TestRefusedBeforeAnythingIsConnected(t *testing.T) {
	for name, tc := range map[string]struct {
		request managed.Request
		code    *managed.Code
		kind    error
	}{
		"unknown type":     {managed.Request{ID: "v1", Connection: []byte(`{"driver_volume_type":"storpool","data":{}}`)}, managed.UnsupportedOperation, failure.Precondition},
		"missing key":      {managed.Request{ID: "v1", Connection: []byte(`{"driver_volume_type":"iscsi","data":{}}`)}, managed.HelperFailed, failure.Usage},
		"not JSON":         {managed.Request{ID: "v1", Connection: []byte(`{`)}, managed.HelperFailed, failure.Usage},
		"id with a slash":  {managed.Request{ID: "../v1", Connection: []byte(iscsi)}, managed.HelperFailed, failure.Usage},
		"id of dots":       {managed.Request{ID: "..", Connection: []byte(iscsi)}, managed.HelperFailed, failure.Usage},
		"empty id":         {managed.Request{Connection: []byte(iscsi)}, managed.HelperFailed, failure.Usage},
		"not defined":      {managed.Request{ID: "v1"}, managed.HelperFailed, failure.NotFound},
		"not a domain":     {managed.Request{ID: "v1", Connection: []byte(iscsi), Domain: "web"}, managed.HelperFailed, failure.Usage},
		"hostile adapter":  {managed.Request{ID: "v1", Connection: []byte(`{"driver_volume_type":"iscsi","adapter":"a/b","data":{}}`)}, managed.HelperFailed, failure.Usage},
		"no such adapter":  {managed.Request{ID: "v1", Connection: []byte(`{"driver_volume_type":"iscsi","adapter":"ab","data":{}}`)}, managed.HelperFailed, failure.Precondition},
		"file of the host": {managed.Request{ID: "v1", Connection: []byte(strings.ReplaceAll(iscsi, `"auth_password"`, `"auth_password_file"`))}, managed.HelperFailed, failure.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			_, err := h.Attach(t.Context(), tc.request)
			coded(t, err, tc.code)
			if !errors.Is(err, tc.kind) {
				t.Errorf("%v", err)
			}
			if lines := h.Lines(); lines != nil {
				t.Errorf("ran %v", lines)
			}
			h.clean()
		})
	}
}

// One device under two ids is refused while nothing is connected, or, where
// only the device tells, without taking it from the volume that has it.
func TestTwoVolumesOfOneDevice(t *testing.T) {
	h := newHome(t)
	_, err := h.attach("v1", iscsi)
	must(t, err)
	h.Forget()
	if _, err := h.attach("v2", iscsi); !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "is volume v1") {
		t.Errorf("%v", err)
	}
	if lines := h.Lines(); lines != nil {
		t.Errorf("ran %v", lines)
	}
	if _, err := h.attach("v3", fc); !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "36001405aa") {
		t.Errorf("%v", err)
	}
	if got := h.path("v1"); got != "/dev/mapper/36001405aa" || !strings.Contains(h.info("v1"), `"exists":true`) || h.info("v2", "v3") != "[]" {
		t.Errorf("%s %s", got, h.info())
	}
}

// The device has vanished: VDSM fails at the first try, and this does not.
func TestAttachAgainAfterTheDeviceVanished(t *testing.T) {
	h := newHome(t)
	_, err := h.attach("v1", nvme)
	must(t, err)
	_, err = h.Run(t.Context(), command.Cmd{Name: "nvme", Args: []string{"disconnect", "-d", "nvme0"}})
	must(t, err)
	if !strings.Contains(h.info(), `"exists":false`) {
		t.Fatal(h.info())
	}
	_, err = h.attach("v1", nvme)
	must(t, err)
	if got := h.path("v1"); got != "/dev/nvme0n1" {
		t.Error(got)
	}
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
}

func TestDetachOfWhatIsInUse(t *testing.T) {
	h := newHome(t)
	_, err := h.attach("v1", iscsi)
	must(t, err)
	h.change(func(s *connectortest.Storage) { s.Open = []string{"/dev/dm-0"} })
	if err := h.Detach(t.Context(), "v1", ""); !errors.Is(err, connector.ErrInUse) || !errors.Is(err, failure.Conflict) {
		t.Errorf("%v", err)
	}
	if got := h.path("v1"); got != "/dev/mapper/36001405aa" {
		t.Error(got)
	}
	h.change(func(s *connectortest.Storage) { s.Open = nil })
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
}

func TestDefinitions(t *testing.T) {
	h := newHome(t)
	for connection, code := range map[string]*managed.Code{
		`{"driver_volume_type":"storpool","data":{}}`: managed.UnsupportedOperation,
		`{"driver_volume_type":"iscsi","data":{}}`:    managed.HelperFailed,
	} {
		coded(t, h.Define(t.Context(), "v1", []byte(connection)), code)
	}
	if err := h.Undefine(t.Context(), "v1"); !errors.Is(err, failure.NotFound) {
		t.Error(err)
	}
	h.define("v1", nvme)
	h.define("v1", iscsi)
	h.define("v0", strings.ReplaceAll(nfs, `"name":"v"`, `"name":"v0"`))
	file := filepath.Join(h.Dir, "etc/diskhook/volumes.d/v1.json")
	text, err := os.ReadFile(file)
	must(t, err)
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 || !strings.Contains(string(text), "canary") {
		t.Errorf("%v %v", st.Mode(), err)
	}
	all, err := h.Definitions()
	must(t, err)
	if len(all) != 2 || all[0].ID != "v0" || all[1].ID != "v1" || strings.Contains(string(all[1].Connection), "canary") || !strings.Contains(string(all[1].Connection), "iqn.x:t") {
		t.Errorf("%s", all)
	}
	must(t, os.WriteFile(filepath.Join(h.Dir, "etc/diskhook/volumes.d/bad.json"), []byte(`{"connection_info":{"canary":1}}`), 0o600))
	if all, err := h.Definitions(); len(all) != 2 || err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("%v %v", all, err)
	}
	_, err = h.fulfil("v1", "")
	must(t, err)
	h.define("v1", iscsi) // no change
	for _, err := range []error{h.Define(t.Context(), "v1", []byte(nvme)), h.Undefine(t.Context(), "v1")} {
		if !errors.Is(err, failure.Conflict) || failure.HintOf(err) != "run `diskhook volume detach v1` first" {
			t.Errorf("%v; %s", err, failure.HintOf(err))
		}
	}
	must(t, h.Detach(t.Context(), "v1", ""))
	must(t, h.Undefine(t.Context(), "v1"))
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A domain's claim keeps the others away, and ends with what it attached.
func TestClaims(t *testing.T) {
	h := newHome(t)
	h.define("v1", iscsi)
	a, err := h.fulfil("v1", domain)
	must(t, err)
	if b, err := h.fulfil("v1", domain); err != nil || !cmp.Equal(a, b) {
		t.Errorf("once more: %+v %v", b, err)
	}
	if _, err := h.fulfil("v1", another); !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "volume detach --domain "+domain+" v1") {
		t.Errorf("%v; %s", err, failure.HintOf(err))
	}
	for _, by := range []string{"", another} {
		if err := h.Detach(t.Context(), "v1", by); !errors.Is(err, failure.Conflict) {
			t.Errorf("detach by %q: %v", by, err)
		}
	}
	must(t, h.Release(t.Context(), "v1", another)) // not its own
	h.path("v1")
	must(t, h.Release(t.Context(), "v1", domain))
	must(t, h.Release(t.Context(), "v1", domain))
	h.clean()

	// What was attached before stays after the release, and is free again.
	_, err = h.fulfil("v1", "")
	must(t, err)
	_, err = h.fulfil("v1", domain)
	must(t, err)
	must(t, h.Release(t.Context(), "v1", domain))
	h.path("v1")
	_, err = h.fulfil("v1", another)
	must(t, err)
	must(t, h.Detach(t.Context(), "v1", another))
	h.clean()
}

// After a boot, or when the host was fenced, the row tells of what is no more.
func TestRowsOfAnEarlierBoot(t *testing.T) {
	for name, connection := range kinds() {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.define("v1", connection)
			_, err := h.fulfil("v1", domain)
			must(t, err)
			must(t, h.Reboot())
			must(t, h.AddHBA(5, 0, "500a09aa00000001"))
			_, err = h.fulfil("v1", another) // the claim was of that boot, too
			must(t, err)
			h.path("v1")
			must(t, h.Release(t.Context(), "v1", another))
			h.clean()
		})
	}
}

// A device that is there after every boot, such as LINSTOR's, is attached
// anew: its row does not stand in the way.
func TestLocalDeviceAfterABoot(t *testing.T) {
	h := newHome(t)
	appear := func() {
		must(t, os.MkdirAll(h.Dir+"/sys/class/block/drbd1", 0o755))
		must(t, os.WriteFile(h.Dir+"/sys/class/block/drbd1/size", []byte("8\n"), 0o600))
		must(t, os.WriteFile(h.Dir+"/dev/drbd1", nil, 0o600))
	}
	const local = `{"driver_volume_type":"local","data":{"device_path":"/dev/drbd1"}}`
	appear()
	_, err := h.attach("v1", local)
	must(t, err)
	_, err = h.attach("v1", local)
	coded(t, err, managed.AlreadyAttached)
	must(t, h.Reboot())
	appear()
	_, err = h.attach("v1", local)
	must(t, err)
	if got := h.path("v1"); got != "/dev/drbd1" {
		t.Error(got)
	}
}

// Another connection after the boot: what the first left on disk goes.
func TestAnotherConnectionAfterABoot(t *testing.T) {
	h := newHome(t)
	_, err := h.attach("v1", iscsi)
	must(t, err)
	must(t, h.Reboot())
	_, err = h.attach("v1", nvme)
	must(t, err)
	if records, _ := filepath.Glob(h.Dir + "/etc/iscsi/nodes/*/*"); records != nil {
		t.Errorf("left: %v", records)
	}
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
}

// The storage gave the LUN to another volume: what was attached goes again.
func TestAnotherVolumeAnswers(t *testing.T) {
	h := newHome(t)
	h.define("v1", iscsi)
	_, err := h.fulfil("v1", domain)
	must(t, err)
	serve := func(l connectortest.LUN) {
		h.change(func(s *connectortest.Storage) { s.ISCSI["iqn.x:t"].LUNs[1] = l })
	}
	must(t, h.Release(t.Context(), "v1", domain))
	for _, wrong := range []connectortest.LUN{{Designator: "naa.6001405cc", Sectors: 2048}, {Designator: "naa.6001405aa", Sectors: 1024}} {
		serve(wrong)
		_, err = h.fulfil("v1", domain)
		if !errors.Is(err, connector.ErrMismatch) || !errors.Is(err, failure.Conflict) || !strings.Contains(failure.HintOf(err), "volume undefine v1") {
			t.Errorf("%v; %s", err, failure.HintOf(err))
		}
		h.clean()
	}
	serve(connectortest.LUN{Designator: "naa.6001405aa", Sectors: 4096}) // it grew
	_, err = h.fulfil("v1", domain)
	must(t, err)
	must(t, h.Release(t.Context(), "v1", domain))
	serve(connectortest.LUN{Designator: "naa.6001405aa", Sectors: 2048}) // and must not shrink again
	if _, err = h.fulfil("v1", domain); !errors.Is(err, connector.ErrMismatch) {
		t.Errorf("%v", err)
	}
	must(t, h.Undefine(t.Context(), "v1"))
	h.define("v1", iscsi)
	_, err = h.fulfil("v1", domain)
	must(t, err)
}

// A definition may keep its secret in a file.
func TestSecretInAFile(t *testing.T) {
	h := newHome(t)
	file := filepath.Join(h.Dir, "chap")
	must(t, os.WriteFile(file, []byte("canary\n"), 0o600))
	h.define("v1", strings.ReplaceAll(iscsi, `"auth_password":"canary"`, `"auth_password_file":"`+file+`"`))
	_, err := h.fulfil("v1", domain)
	must(t, err)
	db, err := os.ReadFile(h.Database)
	must(t, err)
	if strings.Contains(string(db), "canary") {
		t.Error("the secret is in the database")
	}
	must(t, os.Remove(file)) // is not needed any more
	must(t, h.Release(t.Context(), "v1", domain))
	h.clean()
}
