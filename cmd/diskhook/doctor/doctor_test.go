// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/host"
	"diskhook/storage/localdisk"
)

// newHost is a host below a temporary directory that has nothing.
func newHost(t *testing.T) *Host {
	t.Helper()
	l := host.Layout{Root: t.TempDir()}
	h := &Host{
		Layout: l, Config: host.Defaults(l), Log: slog.New(slog.DiscardHandler),
		Run: &commandtest.Runner{T: t}, DomainProgram: filepath.Join(l.Root, "diskhook-domain"), Proc: filepath.Join(l.Root, "proc"),
	}
	h.Local = &localdisk.Service{Layout: l, Config: h.Config, Run: h.Run, Log: h.Log}
	return h
}

func (h *Host) write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	path = h.at(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// one expects a single finding of that level, which has both texts.
func one(t *testing.T, found []Finding, level Level, message, fix string) {
	t.Helper()
	if len(found) != 1 || found[0].Level != level || !strings.Contains(found[0].Message, message) || !strings.Contains(found[0].Fix, fix) {
		t.Errorf("got %+v, want one %s with %q and %q", found, level, message, fix)
	}
	if level != OK && len(found) == 1 && found[0].Fix == "" {
		t.Error("a finding that is not ok says nothing to do")
	}
}

const hookPath = "/etc/libvirt/hooks/qemu.d/50-diskhook"

func TestLibvirtHook(t *testing.T) {
	h := newHost(t)
	one(t, libvirtHook(t.Context(), h), OK, "libvirt is not installed", "")

	h.write(t, "/etc/libvirt/qemu.conf", "", 0o600)
	h.write(t, "/etc/libvirt/hooks/qemu", "#!/bin/sh\n# the admin's own\n", 0o755)
	one(t, libvirtHook(t.Context(), h), Fail, "not installed", "qemu.d/50-diskhook")

	path := h.write(t, hookPath, "\x7fELF urn:diskhook:1", 0o644)
	one(t, libvirtHook(t.Context(), h), Fail, "not executable", "chmod 0755 "+path)
	h.write(t, hookPath, "\x7fELF urn:diskhook:1", 0o777)
	one(t, libvirtHook(t.Context(), h), Fail, "others may write", "chmod 0755 "+path)
	h.write(t, hookPath, "\x7fELF urn:diskhook:1", 0o755)
	one(t, libvirtHook(t.Context(), h), OK, path, "")

	h.write(t, "/etc/libvirt/hooks/qemu", "\x7fELF urn:diskhook:1", 0o755)
	one(t, libvirtHook(t.Context(), h), Warn, "installed 2 times", "rm ")
}

func TestLibvirtReload(t *testing.T) {
	h := newHost(t)
	one(t, libvirtReload(t.Context(), h), OK, "nothing to load", "")
	path := h.write(t, hookPath, "urn:diskhook:1", 0o755)
	one(t, libvirtReload(t.Context(), h), OK, "no daemon", "")

	// libvirtd began 50 s after a boot at 1000000000.
	h.write(t, "/proc/stat", "cpu 1 2\nbtime 1000000000\n", 0o644)
	h.write(t, "/proc/77/stat", "77 (libvirtd) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5000 0 0\n", 0o644)
	h.write(t, "/proc/78/stat", "78 (a) b (c) S 1\n", 0o644)
	at := func(seconds int64) {
		if err := os.Chtimes(path, time.Time{}, time.Unix(1000000000+seconds, 0)); err != nil {
			t.Fatal(err)
		}
	}
	at(51)
	one(t, libvirtReload(t.Context(), h), OK, "libvirtd was started after", "")
	at(53)
	one(t, libvirtReload(t.Context(), h), Warn, "unless it was reloaded", "systemctl reload libvirtd")
}

func TestConfinement(t *testing.T) {
	h := newHost(t)
	path := h.write(t, hookPath, "urn:diskhook:1", 0o755)
	one(t, confinement(t.Context(), h), OK, "neither", "")

	h.write(t, "/sys/fs/selinux/enforce", "1", 0o644)
	one(t, confinement(t.Context(), h), Fail, "SELinux label", "restorecon -v "+path)
	h.write(t, "/sys/fs/selinux/enforce", "0", 0o644)

	h.write(t, "/sys/module/apparmor/parameters/enabled", "Y\n", 0o644)
	one(t, confinement(t.Context(), h), OK, "", "")
	elsewhere := h.write(t, "/usr/libexec/diskhook/qemu-hook", "urn:diskhook:1", 0o755)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	one(t, confinement(t.Context(), h), Fail, "AppArmor", "cp --remove-destination "+elsewhere)
}

// Whoever may write the configuration steers what root does.
func TestConfigurationIsOnlyItsOwners(t *testing.T) {
	h := newHost(t)
	one(t, configuration(t.Context(), h), OK, "the defaults hold", "")
	for mode, level := range map[os.FileMode]Level{0o644: OK, 0o600: OK, 0o664: Fail, 0o646: Fail} {
		path := h.write(t, "/etc/diskhook/diskhook.toml", "", mode)
		if level == OK {
			one(t, configuration(t.Context(), h), OK, "is fine", "")
		} else {
			one(t, configuration(t.Context(), h), Fail, "others than its owner may write", "chmod go-w "+path)
		}
	}
	folder := h.at("/etc/diskhook")
	for mode, message := range map[os.FileMode]string{0o775: "its group may write", 0o757: "anybody may write"} {
		if err := os.Chmod(folder, mode); err != nil {
			t.Fatal(err)
		}
		one(t, directories(t.Context(), h), Fail, message, "o-w "+folder)
	}
}

func TestDirectories(t *testing.T) {
	h := newHost(t)
	one(t, directories(t.Context(), h), OK, "as they should be", "")
	if err := os.MkdirAll(h.Layout.Locks(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.Layout.Locks(), 0o777); err != nil {
		t.Fatal(err)
	}
	one(t, directories(t.Context(), h), Fail, "anybody may write", "chmod o-w "+h.Layout.Locks())
	if err := os.Chmod(h.Layout.Locks(), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.Layout.Run(), 0o750); err != nil {
		t.Fatal(err)
	}
	one(t, directories(t.Context(), h), Warn, "cannot search", "chmod o+x "+h.Layout.Run())
}

func TestVDSM(t *testing.T) {
	h := newHost(t)
	one(t, vdsm(t.Context(), h), OK, "not installed", "")
	for _, point := range vdsmPoints {
		if err := os.MkdirAll(h.at("/usr/libexec/vdsm/hooks/"+point), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	one(t, vdsm(t.Context(), h), Warn, "its hooks of diskhook are not", "install-vdsm")
	for _, point := range vdsmPoints {
		h.write(t, "/usr/libexec/vdsm/hooks/"+point+"/50_diskhook", "", 0o755)
	}
	h.write(t, "/usr/libexec/diskhook/diskhook-helper", "", 0o755)
	h.write(t, "/usr/lib/udev/rules.d/61-diskhook-local.rules", "", 0o644)
	one(t, vdsm(t.Context(), h), Fail, "user vdsm may not run the helper", "")
	sudo := h.write(t, "/etc/sudoers.d/50_vdsm_hook_diskhook", "", 0o644)
	one(t, vdsm(t.Context(), h), Fail, "has mode 644", "chmod 0440 "+sudo)
	h.write(t, "/etc/sudoers.d/50_vdsm_hook_diskhook", "", 0o440)
	one(t, vdsm(t.Context(), h), OK, "all 11 hook points", "")
	h.write(t, "/usr/libexec/vdsm/hooks/after_disk_prepare/10_localdisk", "", 0o755)
	one(t, vdsm(t.Context(), h), Fail, "both would copy", "vdsm-hook-localdisk")
}

func TestStorage(t *testing.T) {
	h := newHost(t)
	h.Config.Local.Reserve = 0
	one(t, storage(t.Context(), h), OK, "are free", "")
	h.Config.Local.Reserve = 1 << 60
	one(t, storage(t.Context(), h), Fail, "less than the reserve", "local.reserve")

	h.Config.Local.Backend = "lvm"
	h.Run = &commandtest.Runner{T: t, Answers: []commandtest.Answer{{
		Code: 5, Stderr: "  Volume group \"ovirt-local\" not found\n  Cannot process volume group ovirt-local\n",
	}}}
	found := storage(t.Context(), h)
	if len(found) != 1 || found[0].Level != Fail || !strings.Contains(found[0].Message, "ovirt-local") || found[0].Fix == "" {
		t.Errorf("got %+v", found)
	}
}

func TestMissingProgramsAreFailuresWhereTheyAreNeeded(t *testing.T) {
	h := newHost(t)
	for _, tool := range tools(h) {
		if tool.name == "lvm" && tool.needed {
			t.Error("lvm is needed for the dir backend")
		}
	}
	h.Config.Local.Backend = "lvmthin"
	for _, tool := range tools(h) {
		if tool.name == "lvm" && !tool.needed {
			t.Error("lvm is not needed for lvmthin")
		}
	}
}

func TestWrongConfigurationIsAFinding(t *testing.T) {
	h := newHost(t)
	h.ConfigErr = failure.Hint(failure.New(failure.Usage, "unknown key"), "correct it")
	one(t, configuration(t.Context(), h), Fail, "unknown key", "correct it")
}
