// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/managed"
)

// guestLVM looks whether this host's LVM would take a volume group that a guest
// made on its managed volume for one of its own. udev's rule keeps it from being
// activated when the device comes; what keeps LVM's commands from it is the
// devices file (lvmdevices(8)).
func (h *Host) guestLVM(ctx context.Context, s *managed.Service) []Finding {
	if read(h.at("/etc/lvm/lvm.conf")) == "" {
		return nil // no LVM
	}
	rule := "62-diskhook-volumes.rules"
	found := false
	for _, dir := range []string{"/usr/lib/udev/rules.d", "/lib/udev/rules.d", "/etc/udev/rules.d"} {
		found = found || read(h.at(filepath.Join(dir, rule))) != ""
	}
	if !found {
		return []Finding{fail("install the package diskhook again, or put contrib/udev/"+rule+" into /etc/udev/rules.d and run `udevadm control --reload`",
			"the udev rule %s is missing: this host's LVM activates volume groups of guests when their managed volumes come", rule)}
	}
	file := h.devicesFile(ctx)
	if file == "" {
		return []Finding{warn("have LVM look at the host's own devices only: set use_devicesfile=1 in lvm.conf and run `vgimportdevices VG` for each volume group of the host",
			"LVM has no devices file: its commands see volume groups of guests on managed volumes, and `vgchange -ay` would activate them")}
	}
	rows, err := s.List(ctx)
	if err != nil {
		return []Finding{failed(err)}
	}
	entries := read(file)
	for _, v := range rows {
		if v.Path != "" && strings.Contains(entries, filepath.Base(v.Path)) {
			return []Finding{warn("run `lvmdevices --deldev "+v.Path+"`", "%s has managed volume %s: LVM takes a guest's volume group on it for one of the host's", file, v.ID)}
		}
	}
	return []Finding{ok("LVM leaves managed volumes alone: %s", file)}
}

// devicesFile is the file with the devices that LVM looks at, "" if it looks at
// all, as it does while there is no such file.
func (h *Host) devicesFile(ctx context.Context) string {
	result, err := h.Run.Run(ctx, command.Cmd{
		Name: "lvm", Args: []string{"lvmconfig", "--typeconfig", "full", "devices/use_devicesfile", "devices/devicesfile"}, Timeout: 10 * time.Second,
	})
	if err != nil || !strings.Contains(string(result.Stdout), "use_devicesfile=1") {
		return "" // older ones do not know it
	}
	_, name, _ := strings.Cut(string(result.Stdout), `devicesfile="`)
	name, _, _ = strings.Cut(name, `"`)
	file := h.at(filepath.Join("/etc/lvm/devices", filepath.Base("/"+name)))
	if name == "" || read(file) == "" {
		return ""
	}
	return file
}
