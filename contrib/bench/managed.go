// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/host"
	"diskhook/storage/managed"
	"diskhook/storage/managed/database"
)

const (
	knownVolumes = 500
	attachRounds = 10
)

// The Python way is what VDSM has a process of Python do for each request: the
// host's properties, os-brick's connector, and a row in the database. Python's
// own privsep daemon is left out, since root needs none.
const pythonWay = `
import json, sqlite3, sys
from os_brick import privileged
from os_brick.initiator import connector
privileged.default.set_client_mode(False)
verb, path, device = sys.argv[1:]
data = {"device_path": device}
db = sqlite3.connect(path)
info = json.dumps({"driver_volume_type": "local", "data": data}).encode()
if verb == "attach":
    with db:
        db.execute("INSERT INTO volumes (vol_id, connection_info) VALUES ('python', ?)", (info,))
properties = connector.get_connector_properties(None, None, True, False)
c = connector.InitiatorConnector.factory("local", None, use_multipath=True, device_scan_attempts=3, conn=properties)
if verb == "attach":
    attachment = c.connect_volume(data)
    with db:
        db.execute("UPDATE volumes SET path = ?, attachment = ?, updated = datetime('now') WHERE vol_id = 'python'",
                   (attachment["path"], json.dumps(attachment).encode()))
else:
    c.disconnect_volume(data, {}, force=False, ignore_errors=False)
    with db:
        db.execute("DELETE FROM volumes WHERE vol_id = 'python'")
`

// managedVolumes attaches and detaches a device of this host, so that no
// storage's time is in it, where 500 other volumes are defined and attached. Each
// call is a process, from its start to its end.
func managedVolumes(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "diskhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		return err
	}
	found, err := exec.CommandContext(ctx, "losetup", "--find", "--show", file).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w (it needs root)", err)
	}
	device := strings.TrimSpace(string(found))
	defer func() { err = errors.Join(err, exec.Command("losetup", "--detach", device).Run()) }() //nolint:noctx // in any case
	service, err := known(ctx, dir, device)
	if err != nil {
		return err
	}

	type contestant struct {
		name   string
		argv   func(verb string) []string
		stdin  string
		counts []time.Duration
	}
	contestants := []*contestant{
		{name: "diskhook volume", argv: func(verb string) []string { return []string{"bin/diskhook", "volume", verb, "new"} }},
		{name: "diskhook volume helper", argv: func(verb string) []string { return []string{"bin/diskhook", "volume", "helper", verb} },
			stdin: fmt.Sprintf(`{"connection_info":{"driver_volume_type":"local","data":{"device_path":%q}}}`, device)},
	}
	if exec.CommandContext(ctx, "/usr/bin/python3", "-I", "-c", "import os_brick.initiator.connector").Run() == nil {
		contestants = append(contestants, &contestant{name: "os-brick in Python", argv: func(verb string) []string {
			return []string{"/usr/bin/python3", "-I", "-W", "ignore", "-c", pythonWay, verb, service.Database, device}
		}})
	} else {
		fmt.Fprintln(out, "  python3-os-brick is not installed: nothing to compare with")
	}
	for range attachRounds {
		for _, c := range contestants {
			from := time.Now()
			for _, verb := range []string{"attach", "detach"} {
				argv := c.argv(verb)
				cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
				cmd.Stdin = strings.NewReader(c.stdin)
				cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DISKHOOK_ROOT=" + dir}
				if said, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%s %s: %w: %s", c.name, verb, err, said)
				}
			}
			c.counts = append(c.counts, time.Since(from))
		}
	}
	first := median(contestants[0].counts)
	for _, c := range contestants {
		took := median(c.counts)
		fmt.Fprintf(out, "  %-24s %8.1f ms  %5.2f ×  %6.1f attaches and detaches a second\n", c.name, milliseconds(took), ratio(took, first), float64(time.Second)/float64(took))
	}
	fmt.Fprintf(out, "  (median of %d attaches with a detach each, %d volumes known)\n", attachRounds, knownVolumes)
	return nil
}

// known is a host with its volumes.
func known(ctx context.Context, dir, device string) (*managed.Service, error) {
	layout := host.Layout{Root: dir}
	service := managed.New(layout, host.Defaults(layout).Managed, slog.New(slog.DiscardHandler))
	boot, err := service.Boot()
	if err != nil {
		return nil, err
	}
	id := func(i int) string { return fmt.Sprintf("v%03d", i) }
	connection := func(i int) []byte {
		return fmt.Appendf(nil, `{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5:3260","target_iqn":"iqn.2026-11.test:%s","target_lun":1,"auth_method":"CHAP","auth_username":"u","auth_password":"secret"}}`, id(i))
	}
	for i := range knownVolumes {
		if err := service.Define(ctx, id(i), connection(i)); err != nil {
			return nil, err
		}
	}
	if err := service.Define(ctx, "new", fmt.Appendf(nil, `{"driver_volume_type":"local","data":{"device_path":%q}}`, device)); err != nil {
		return nil, err
	}
	db, err := database.Open(ctx, service.Database)
	if err != nil {
		return nil, err
	}
	return service, errors.Join(db.Update(ctx, func(tx *database.Tx) error {
		for i := range knownVolumes {
			attached := database.Volume{ID: id(i), Path: "/dev/mapper/" + id(i), Attachment: []byte(`{}`), MultipathID: id(i)}
			if err := errors.Join(tx.Record(id(i), connection(i), boot), tx.Attached(attached)); err != nil {
				return err
			}
		}
		return nil
	}), db.Close())
}
