// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package doctor

import (
	"testing"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/managed"
)

// What keeps the host's LVM from the volume groups of guests: the rule, and the
// devices file.
func TestGuestLVM(t *testing.T) {
	h := newHost(t)
	look := func() []Finding { return h.guestLVM(t.Context(), managed.New(h.Layout, h.Config.Managed, h.Log)) }
	if found := look(); found != nil {
		t.Errorf("without LVM: %+v", found)
	}
	h.write(t, "/etc/lvm/lvm.conf", "#\n", 0o644)
	says := func(stdout string, code int) {
		h.Run = &commandtest.Runner{T: t, Answers: []commandtest.Answer{{Prefix: "lvm lvmconfig --typeconfig full devices/use_devicesfile devices/devicesfile", Stdout: stdout, Code: code}}}
	}
	one(t, look(), Fail, "62-diskhook-volumes.rules is missing", "udevadm control --reload")
	h.write(t, "/usr/lib/udev/rules.d/62-diskhook-volumes.rules", "#\n", 0o644)
	const used = "use_devicesfile=1\ndevicesfile=\"system.devices\"\n"
	for _, c := range []struct {
		stdout string
		code   int
	}{{"", 5}, {"use_devicesfile=0\ndevicesfile=\"system.devices\"\n", 0}, {used, 0}} {
		says(c.stdout, c.code)
		one(t, look(), Warn, "LVM has no devices file", "vgimportdevices")
	}
	h.write(t, "/etc/lvm/devices/system.devices", "IDTYPE=sys_wwid IDNAME=naa.5 DEVNAME=/dev/sda2 PVID=x\n", 0o600)
	says(used, 0)
	one(t, look(), OK, "system.devices", "")
}
