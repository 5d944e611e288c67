// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package doctor

import (
	"os"
	"path/filepath"
	"testing"

	"diskhook/storage/command/commandtest"
)

// What is missing is a fault only once a volume needs it.
func TestManagedVolumes(t *testing.T) {
	h := newHost(t)
	tools := t.TempDir()
	t.Setenv("DISKHOOK_TOOLS", tools)
	install := func(names ...string) {
		for _, name := range names {
			if err := os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	runs := func(code int) {
		h.Run = &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "multipathd show status", Code: code}}}
	}
	one(t, managedVolumes(t.Context(), h), OK, "no volumes are defined", "")
	h.Config.Managed.Database = h.write(t, "/var/lib/vdsm/managedvolume.db", "", 0o644)
	one(t, managedVolumes(t.Context(), h), Fail, h.Config.Managed.Database, "chmod 0600 "+h.Config.Managed.Database)
	if err := os.Chmod(h.Config.Managed.Database, 0o600); err != nil {
		t.Fatal(err)
	}
	one(t, managedVolumes(t.Context(), h), OK, "no volumes are defined", "")

	path := h.write(t, "/etc/diskhook/volumes.d/v.json", `{"id":"v","connection_info":{"driver_volume_type":"nvmeof","data":{"target_portal":"1.1.1.1","target_port":4420,"nqn":"nqn.s"}}}`, 0o600)
	install("nvme")
	one(t, managedVolumes(t.Context(), h), OK, "nvme attaches volumes of type nvmeof", "")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	one(t, managedVolumes(t.Context(), h)[:1], Fail, path, "chmod 0600")

	h.write(t, "/etc/diskhook/volumes.d/v.json", `{"id":"v","connection_info":{"driver_volume_type":"iscsi","data":{"target_portal":"10.0.0.5","target_iqn":"iqn.x","target_lun":1}}}`, 0o600)
	install("iscsiadm", "multipath", "multipathd")
	runs(1)
	found := managedVolumes(t.Context(), h)
	if len(found) != 4 {
		t.Fatalf("%+v", found)
	}
	one(t, found[2:3], Warn, "multipathd does not run", "systemctl enable --now multipathd")
	one(t, found[3:], Fail, "names no initiator", "iscsi-iname")
	h.write(t, "/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.me\n", 0o600)
	runs(0)
	for _, f := range managedVolumes(t.Context(), h) {
		if f.Level != OK {
			t.Errorf("%+v", f)
		}
	}

	h.write(t, "/etc/diskhook/volumes.d/v.json", `{"id":"v","connection_info":{"driver_volume_type":"x","adapter":"none","data":{}}}`, 0o600)
	one(t, managedVolumes(t.Context(), h), Fail, "managedvolume-helper-none", "name its path in `adapters`")
	h.write(t, "/etc/diskhook/volumes.d/v.json", `{`, 0o600)
	one(t, managedVolumes(t.Context(), h), Fail, "not a definition", "diskhook volume define")
}
