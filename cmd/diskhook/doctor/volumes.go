// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/managed"
	"diskhook/storage/managed/connector"
)

// attacher is a program that attaches volumes of a driver_volume_type.
type attacher struct{ name, install string }

// attachers are what a host needs for the volumes that are defined on it, and
// for those only.
func attachers() map[string][]attacher {
	multipath := []attacher{
		{"multipath", "install multipath-tools (Debian) or device-mapper-multipath (Fedora, EL)"},
		{"multipathd", "install multipath-tools (Debian) or device-mapper-multipath (Fedora, EL)"},
	}
	return map[string][]attacher{
		"iscsi":         append([]attacher{{"iscsiadm", "install open-iscsi (Debian) or iscsi-initiator-utils (Fedora, EL)"}}, multipath...),
		"fibre_channel": multipath,
		"nvmeof":        {{"nvme", "install nvme-cli"}},
		"rbd":           {{"rbd", "install ceph-common"}},
		"nfs":           {{"mount.nfs", "install nfs-common (Debian) or nfs-utils (Fedora, EL)"}},
	}
}

// managedVolumes looks whether the volumes that are defined can be attached.
func managedVolumes(ctx context.Context, h *Host) []Finding {
	s := managed.New(h.Layout, h.Config.Managed, h.Log)
	definitions, damaged := s.Definitions()
	found := h.private(h.Config.Managed.Database) // VDSM makes its own for all to read
	if damaged != nil {
		found = append(found, failed(damaged))
	}
	if len(definitions) == 0 && len(found) == 0 {
		return []Finding{ok("no volumes are defined")}
	}
	types := map[string]bool{}
	for _, d := range definitions {
		found = append(found, h.private(filepath.Join(h.Layout.Definitions("volumes"), d.ID+".json"))...)
		info, err := connector.ParseInfo(d.Connection)
		if err == nil {
			_, err = s.Host.Open(d.ID, info)
		}
		switch {
		case err != nil:
			found = append(found, fail(failure.HintOf(err), "volume %s: %v", d.ID, err))
		case info.Adapter == "":
			types[info.Type] = true
		}
	}
	seen := map[string]bool{}
	for _, kind := range slices.Sorted(maps.Keys(types)) {
		for _, program := range attachers()[kind] {
			if !seen[program.name] {
				seen[program.name] = true
				found = append(found, h.attacher(ctx, kind, program))
			}
		}
	}
	if types["iscsi"] && !strings.Contains(read(h.at("/etc/iscsi/initiatorname.iscsi")), "InitiatorName=") {
		found = append(found, fail("run `iscsi-iname`, and write its answer there as InitiatorName=…", "%s names no initiator", h.at("/etc/iscsi/initiatorname.iscsi")))
	}
	if len(types) > 1 || len(types) == 1 && !types["nfs"] { // there are devices
		found = append(found, h.guestLVM(ctx, s)...)
	}
	if len(found) == 0 {
		found = append(found, ok("volumes that are defined, and need no program: %d", len(definitions)))
	}
	return found
}

// attacher: one path without multipathd works, until that path fails.
func (h *Host) attacher(ctx context.Context, kind string, program attacher) Finding {
	path, err := command.Find(program.name)
	multipath := strings.HasPrefix(program.name, "multipath")
	switch {
	case err != nil && multipath:
		return warn(program.install, "%s is missing: volumes of type %s have one path only", program.name, kind)
	case err != nil:
		return fail(program.install, "%s is missing: volumes of type %s cannot be attached", program.name, kind)
	case program.name == "multipathd":
		if _, err := h.Run.Run(ctx, command.Cmd{Name: program.name, Args: []string{"show", "status"}, Timeout: 10 * time.Second}); err != nil {
			return warn("systemctl enable --now multipathd", "multipathd does not run: volumes of type %s have one path only", kind)
		}
	}
	return ok("%s attaches volumes of type %s", path, kind)
}

// private: connection data has secrets.
func (h *Host) private(path string) []Finding {
	st, err := os.Stat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && st.Mode().Perm()&0o077 != 0 {
		return []Finding{fail("chmod 0600 "+path, "%s: others than root can read it, or nobody can", path)}
	}
	return nil
}
