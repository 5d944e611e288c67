// SPDX-License-Identifier: Apache-2.0

package managed_test

import (
	"database/sql"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"diskhook/storage/command"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector/connectortest"
	"diskhook/storage/managed/database"
)

// What VDSM's own tests ask of its managed volumes (tests/storage/
// managedvolume_test.py and managedvolumedb_test.py), behaviour by behaviour, in
// the order of those files, from outside. Three are other here, and say so: no
// os-brick is needed, a detach goes on where the path has gone, and there is no
// cache of LVM's to invalidate.
var upstream = []struct {
	behaviour string
	try       func(*testing.T, *home)
}{
	{"connector_info tells of the host", connectorInfo},
	{"connector_info without os-brick: is the same, since none is needed", connectorInfo},
	{"helper exits 1: 926, with what it said", adapterFails("echo boom >&2; exit 1", "boom")},
	{"helper answers no JSON: 926", adapterFails("echo nonsense", "not a JSON object")},
	{"text of an exception is in the error", adapterFails("echo 'Traceback: KeyError x' >&2; exit 1", "Traceback: KeyError x")},
	{"attach iscsi: row, ownership, rule", attachISCSI},
	{"attach rbd: the path is /dev/rbd/NAME", attachRBD},
	{"no multipath_id, iscsi: 928, detached, no row", noMultipath(iscsi)},
	{"no multipath_id, fibre_channel: 928, detached, no row", noMultipath(fc)},
	{"attach again, the same: 927, nothing is connected", attachAgain(iscsi, managed.AlreadyAttached)},
	{"attach again, another connection: 929, nothing is connected", attachAgain(nvme, managed.ConnectionMismatch)},
	{"the database fails after the attach: disconnected", databaseFails},
	{"detach of what is not in the database: done", func(t *testing.T, h *home) { must(t, h.Detach(t.Context(), "nobody", "")); h.clean() }},
	{"detach, the path has gone: row, link and session go", detachVanished},
	{"detach: disconnected, row and ownership gone", detachAttached},
	{"volumes_info of an unknown volume: []", func(t *testing.T, h *home) { told(t, h, `[]`, "nobody") }},
	{"volumes_info, the path has gone: exists is false", infoVanished},
	{"volumes_info, the path is there: exists is true", infoThere},
	{"volumes_info of all: by id, one without a path", infoAll},
	{"database: created, with its version, and mode 0600", databaseCreated},
	{"database: closed twice", databaseClosedTwice},
	{"database: used after it was closed", databaseUsedAfterClose},
	{"database: insert, select, duplicate, update, delete", databaseLife},
	{"database: owns a multipath id from attach to detach", ownsMultipath},
	{"database: select by ids", databaseByIDs},
	{"database: a select within a select", databaseNested},
	{"database: ten users at once, ten volumes each", databaseConcurrent},
	{"database: 500 rows, each found", databaseOf500},
}

func TestUpstream(t *testing.T) {
	for _, c := range upstream {
		t.Run(c.behaviour, func(t *testing.T) { c.try(t, newHome(t)) })
	}
}

func told(t *testing.T, h *home, want string, ids ...string) {
	t.Helper()
	if diff := cmp.Diff(want, h.info(ids...)); diff != "" {
		t.Error(diff)
	}
}

func connectorInfo(t *testing.T, h *home) {
	p, err := h.ConnectorInfo(t.Context())
	must(t, err)
	text, err := json.Marshal(p)
	must(t, err)
	for _, want := range []string{`"os_type":"linux"`, `"multipath":true`, `"initiator":"iqn.1993-08.org.debian:01:abc"`, `"ip":null`, `"do_local_attach":false`, `"wwpns":["`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
}

func adapterFails(script, says string) func(*testing.T, *home) {
	return func(t *testing.T, h *home) {
		dir := filepath.Join(h.Dir, "usr/libexec/vdsm")
		must(t, os.MkdirAll(dir, 0o755))
		// A detach follows, so that nothing stays: it has to succeed.
		text := "#!/bin/sh\ncat >/dev/null\nif [ \"$1\" = detach ]; then echo '{}'; exit; fi\n" + script + "\n"
		must(t, os.WriteFile(filepath.Join(dir, "managedvolume-helper-x"), []byte(text), 0o755))
		_, err := h.attach("v1", `{"driver_volume_type":"lightos","adapter":"x","data":{}}`)
		coded(t, err, managed.HelperFailed)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v lacks %s", err, says)
		}
		h.clean()
	}
}

func attachISCSI(t *testing.T, h *home) {
	must(t, os.MkdirAll(h.Dir+"/run/udev", 0o755))
	_, err := h.attach("v1", iscsi)
	must(t, err)
	if all, err := h.rows(t, "v1"); err != nil || len(all) != 1 || all[0].MultipathID != "36001405aa" || all[0].Path != h.Dir+"/dev/mapper/36001405aa" {
		t.Errorf("%+v %v", all, err)
	}
	must(t, h.Own(t.Context(), "v1", os.Geteuid(), os.Getegid()))
	rule, err := os.ReadFile(h.Dir + "/run/udev/rules.d/99-diskhook-volume-v1.rules")
	if err != nil || !strings.Contains(string(rule), `KERNEL=="dm-0"`) || !slices.Contains(h.Lines(), "udevadm control --reload") {
		t.Errorf("%s %v", rule, err)
	}
}

func attachRBD(t *testing.T, h *home) {
	a, err := h.attach("v1", rbd)
	must(t, err)
	if a.Path != h.Dir+"/dev/rbd/p/i" {
		t.Error(a.Path)
	}
}

func noMultipath(connection string) func(*testing.T, *home) {
	return func(t *testing.T, h *home) {
		h.Service.Host.NeedMultipath = true
		h.change(func(s *connectortest.Storage) { s.Blacklist = []string{"36001405aa"} })
		_, err := h.attach("v1", connection)
		coded(t, err, managed.UnsupportedDevice)
		h.clean()
	}
}

func attachAgain(connection string, code *managed.Code) func(*testing.T, *home) {
	return func(t *testing.T, h *home) {
		_, err := h.attach("v1", iscsi)
		must(t, err)
		before := h.info()
		h.Forget()
		_, err = h.attach("v1", connection)
		coded(t, err, code)
		if lines := h.Lines(); lines != nil {
			t.Errorf("ran %q", lines)
		}
		told(t, h, before)
	}
}

func databaseFails(t *testing.T, h *home) {
	_, err := h.attach("other", nvme) // makes the database
	must(t, err)
	must(t, h.Detach(t.Context(), "other", ""))
	db, err := sql.Open("sqlite", h.Database)
	must(t, err)
	defer db.Close()
	_, err = db.Exec(`CREATE TRIGGER full BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'no more'); END`)
	must(t, err)
	_, err = h.attach("v1", iscsi)
	coded(t, err, managed.HelperFailed)
	if err == nil || !strings.Contains(err.Error(), "no more") {
		t.Errorf("%v", err)
	}
	h.clean()
}

// VDSM leaves sessions behind there, since it does not ask the helper.
func detachVanished(t *testing.T, h *home) {
	_, err := h.attach("v1", iscsi)
	must(t, err)
	_, err = h.Run(t.Context(), command.Cmd{Name: "multipath", Args: []string{"-f", "36001405aa"}})
	must(t, err)
	if !strings.Contains(h.info(), `"exists":false`) {
		t.Fatal(h.info())
	}
	must(t, h.Detach(t.Context(), "v1", ""))
	h.clean()
}

func detachAttached(t *testing.T, h *home) {
	must(t, os.MkdirAll(h.Dir+"/run/udev", 0o755))
	_, err := h.attach("v1", iscsi)
	must(t, err)
	must(t, h.Own(t.Context(), "v1", os.Geteuid(), os.Getegid()))
	h.Forget()
	must(t, h.Detach(t.Context(), "v1", ""))
	if lines := h.Lines(); !slices.Contains(lines, "iscsiadm -m node -T iqn.x:t -p 10.0.0.5:3260 --logout") {
		t.Errorf("%q", lines)
	}
	if rules, _ := os.ReadDir(h.Dir + "/run/udev/rules.d"); len(rules) > 0 {
		t.Errorf("left: %v", rules)
	}
	h.clean()
}

func infoVanished(t *testing.T, h *home) {
	_, err := h.attach("v1", nfs)
	must(t, err)
	must(t, os.Remove(h.Dir+h.path("v1")))
	if got := h.info("v1"); !strings.HasSuffix(got, `"exists":false}]`) {
		t.Error(got)
	}
}

func infoThere(t *testing.T, h *home) {
	_, err := h.attach("v1", nfs)
	must(t, err)
	if got := h.info("v1"); !strings.HasSuffix(got, `"exists":true}]`) {
		t.Error(got)
	}
}

func infoAll(t *testing.T, h *home) {
	for id, connection := range map[string]string{"c": nvme, "a": nfs} {
		_, err := h.attach(id, connection)
		must(t, err)
	}
	h.row(func(tx *database.Tx) error {
		return tx.Record("b", []byte(`{"driver_volume_type":"storpool"}`), h.boot())
	})
	var ids []string
	all, err := h.VolumesInfo(t.Context())
	must(t, err)
	for _, i := range all {
		ids = append(ids, i.ID+map[bool]string{true: " path"}[i.Path != ""]+map[bool]string{true: " exists"}[i.Exists != nil])
	}
	if diff := cmp.Diff([]string{"a path exists", "b", "c path exists"}, ids); diff != "" {
		t.Error(diff)
	}
	told(t, h, `[{"vol_id":"b","connection_info":{"driver_volume_type":"storpool"}}]`, "b")
}
