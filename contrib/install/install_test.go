// SPDX-License-Identifier: Apache-2.0

//go:build integration

// Package install tests `make install` and its kin below a DESTDIR.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// adminsHook is what must never be touched.
const adminsHook = "/etc/libvirt/hooks/qemu"

func TestInstallAndUninstall(t *testing.T) {
	dest := withAdminsHook(t)
	before := listing(t, dest)

	makeTarget(t, "install", "DESTDIR="+dest)
	want := append([]string{
		"-rwxr-xr-x /etc/libvirt/hooks/qemu",
		"-rwxr-xr-x /etc/libvirt/hooks/qemu.d/50-diskhook",
		"-rwxr-xr-x /usr/bin/diskhook",
		"-rwxr-xr-x /usr/libexec/diskhook/diskhook-domain",
		"-rwxr-xr-x /usr/libexec/diskhook/diskhook-etcd",
		"-rwxr-xr-x /usr/libexec/diskhook/diskhook-helper",
		"-rwxr-xr-x /usr/libexec/diskhook/qemu-hook",
		"-rw-r--r-- /usr/libexec/diskhook/directories",
		"-rw-r--r-- /usr/lib/tmpfiles.d/diskhook.conf",
		"-rw-r--r-- /usr/lib/udev/rules.d/62-diskhook-volumes.rules",
		"-rw-r--r-- /usr/share/bash-completion/completions/diskhook",
		"-rw-r--r-- /usr/share/doc/diskhook/CHANGELOG.md",
		"-rw-r--r-- /usr/share/doc/diskhook/LICENSE",
		"-rw-r--r-- /usr/share/doc/diskhook/README.md",
		"-rw-r--r-- /usr/share/doc/diskhook/apparmor.libvirtd",
		"-rw-r--r-- /usr/share/doc/diskhook/diskhook.toml",
		"-rw-r--r-- /usr/share/doc/diskhook/membership/README.md",
		"-rwxr-xr-x /usr/share/doc/diskhook/membership/diskhook-thin",
		"-rwxr-xr-x /usr/share/doc/diskhook/membership/diskhook-thin-alert",
		"-rwxr-xr-x /usr/share/doc/diskhook/membership/diskhook-thin-sanlock",
		"-rw-r--r-- /usr/share/doc/diskhook/selinux.md",
	}, shipped(t, "../systemd", "/usr/lib/systemd/system", "")...)
	want = append(want, shipped(t, "../man", "/usr/share/man/man", "8")...)
	want = append(want, shipped(t, "../man", "/usr/share/man/man", "5")...)
	equal(t, want, listing(t, dest))

	makeTarget(t, "install-vdsm", "DESTDIR="+dest)
	for _, point := range []string{
		"after_disk_prepare", "before_vm_start", "before_disk_hotplug", "after_disk_hotunplug", "before_vm_migrate_source",
		"after_vm_destroy", "before_vm_dehibernate", "after_vm_hibernate", "after_vm_dehibernate", "before_vdsm_start",
		"after_get_caps",
	} {
		want = append(want, "/usr/libexec/vdsm/hooks/"+point+"/50_diskhook -> /usr/libexec/diskhook/qemu-hook")
	}
	want = append(want,
		"-rwxr-xr-x /usr/libexec/diskhook/vdsm/managedvolume-helper",
		"-rwxr-xr-x /usr/libexec/diskhook/vdsm/managedvolumes",
		"-rw-r--r-- /usr/libexec/diskhook/vdsm/python/os_brick/__init__.py",
		"/usr/libexec/vdsm/managedvolume-helper-diskhook -> /usr/libexec/diskhook/vdsm/managedvolume-helper",
		"-r--r----- /etc/sudoers.d/50_vdsm_hook_diskhook",
		"-rw-r--r-- /usr/lib/udev/rules.d/61-diskhook-local.rules",
		"-rw-r--r-- /usr/lib/tmpfiles.d/diskhook-vdsm.conf",
	)
	equal(t, want, listing(t, dest))

	hook := read(t, dest+"/etc/libvirt/hooks/qemu.d/50-diskhook")
	if !bytes.Equal(hook, read(t, dest+"/usr/libexec/diskhook/qemu-hook")) {
		t.Error("libvirt's copy of the hook is another program than qemu-hook")
	}
	for path, mention := range map[string]string{
		"/etc/libvirt/hooks/qemu.d/50-diskhook": "/usr/bin/diskhook",
		"/usr/bin/diskhook":                     "/usr/libexec/diskhook/diskhook-domain",
		"/usr/libexec/diskhook/diskhook-etcd":   "/usr/bin/diskhook",
	} {
		if !bytes.Contains(read(t, dest+path), []byte(mention)) {
			t.Errorf("%s does not know %s", path, mention)
		}
	}

	makeTarget(t, "uninstall", "DESTDIR="+dest)
	equal(t, before, listing(t, dest))
	if got := string(read(t, dest+adminsHook)); got != "#!/bin/sh\n" {
		t.Errorf("the admin's hook is now %q", got)
	}
}

// TestUninstallRemovesItsFolders removes those that it made or that are
// diskhook's, and none that holds something or was there before.
func TestUninstallRemovesItsFolders(t *testing.T) {
	dest := t.TempDir()
	kept := []string{
		"/etc/libvirt/hooks/",
		"/run/",
		"/usr/libexec/vdsm/hooks/before_vm_start/", // VDSM's own
		"/usr/share/doc/",
	}
	for _, dir := range kept {
		if err := os.MkdirAll(dest+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	makeTarget(t, "install", "DESTDIR="+dest)
	makeTarget(t, "install-vdsm", "DESTDIR="+dest)
	makeTarget(t, "install", "DESTDIR="+dest) // an upgrade
	for _, dir := range []string{
		"/etc/diskhook/volumes.d", "/var/lib/diskhook/receipts/d", "/var/lib/diskhook/cursors", "/var/lib/diskhook/local", "/run/diskhook/status/d",
	} {
		if err := os.MkdirAll(dest+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{
		"/etc/diskhook/diskhook.toml", "/var/lib/diskhook/local/copy.raw", "/usr/lib/udev/rules.d/99-local.rules",
	} {
		if err := os.WriteFile(dest+file, []byte("precious"), 0o644); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, file)
	}
	makeTarget(t, "uninstall", "DESTDIR="+dest)
	equal(t, kept, leaves(t, dest))
	if got := string(read(t, dest+"/var/lib/diskhook/local/copy.raw")); got != "precious" {
		t.Errorf("the copy is now %q", got)
	}
}

// TestManagedVolumes: VDSM's own helper is replaced on request only, and is back
// after an uninstall.
func TestManagedVolumes(t *testing.T) {
	dest := withAdminsHook(t)
	helper := dest + "/usr/libexec/vdsm/managedvolume-helper"
	if err := errors.Join(os.MkdirAll(filepath.Dir(helper), 0o755), os.WriteFile(helper, []byte("VDSM's"), 0o755)); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dest)
	for range 2 {
		makeTarget(t, "install-vdsm", "DESTDIR="+dest)
		if got := string(read(t, helper)); got != "VDSM's" {
			t.Fatalf("overwritten: %q", got)
		}
	}
	managed := dest + "/usr/libexec/diskhook/vdsm/managedvolumes"
	run(t, managed, "--root", dest, "enable")
	if to, err := os.Readlink(helper); err != nil || !bytes.Equal(read(t, dest+to), read(t, "../vdsm/managedvolume-helper")) {
		t.Errorf("enabled: %s, %v", to, err)
	}
	makeTarget(t, "install-vdsm", "DESTDIR="+dest) // an upgrade
	run(t, managed, "--root", dest, "status")
	makeTarget(t, "uninstall", "DESTDIR="+dest)
	if got := string(read(t, helper)); got != "VDSM's" {
		t.Errorf("afterwards: %q", got)
	}
	equal(t, before, listing(t, dest))
}

// leaves is every file below dest, and every directory that is empty.
func leaves(t *testing.T, dest string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "find", dest, "(", "-type", "d", "-empty", "-printf", "/%P/\n", ")", "-o", "(", "!", "-type", "d", "-printf", "/%P\n", ")").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// TestPrefix moves programs, and every file and program that names them.
func TestPrefix(t *testing.T) {
	dest := t.TempDir()
	makeTarget(t, "install", "DESTDIR="+dest, "PREFIX=/opt/diskhook", "VERSION=v1.2.3-test")
	for path, mention := range map[string]string{
		"/etc/libvirt/hooks/qemu.d/50-diskhook": "/opt/diskhook/bin/diskhook",
		"/opt/diskhook/bin/diskhook":            "/opt/diskhook/libexec/diskhook/diskhook-domain",
	} {
		if !bytes.Contains(read(t, dest+path), []byte(mention)) {
			t.Errorf("%s does not mention %s", path, mention)
		}
	}
	for _, program := range []string{"bin/diskhook", "libexec/diskhook/qemu-hook"} {
		out, err := exec.CommandContext(t.Context(), dest+"/opt/diskhook/"+program, "--version").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "v1.2.3-test") {
			t.Errorf("%s --version: %v: %s", program, err, out)
		}
	}
}

// TestVDSMIsForUsrOnly: the path of the helper that VDSM's hooks start is fixed.
func TestVDSMIsForUsrOnly(t *testing.T) {
	dest := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "make", "--no-print-directory", "-C", "../..", "out="+programs,
		"install-vdsm", "DESTDIR="+dest, "PREFIX=/opt/diskhook").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "use PREFIX=/usr") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(dest + "/usr/libexec/vdsm"); !os.IsNotExist(err) {
		t.Errorf("hook points were made: %v", err)
	}
}

// TestSystemFilesAreSound asks the programs that will read them.
func TestSystemFilesAreSound(t *testing.T) {
	dest := t.TempDir()
	makeTarget(t, "install-vdsm", "DESTDIR="+dest)
	run(t, "visudo", "-cf", dest+"/etc/sudoers.d/50_vdsm_hook_diskhook")
	units, err := filepath.Glob(dest + "/usr/lib/systemd/system/*")
	if err != nil || len(units) == 0 {
		t.Fatalf("no units: %v", err)
	}
	// What units of ours refer to, from the machine's systemd.
	run(t, "sh", "-c", `cp /usr/lib/systemd/system/*.target "$1"`, "sh", dest+"/usr/lib/systemd/system")
	for _, unit := range units {
		// An instance is a name as it stands: %I would make web/1 of web-1.
		if strings.Contains(string(read(t, unit)), "%I") {
			t.Errorf("%s unescapes the name of its instance", unit)
		}
		// A template is verified as one of its instances.
		name := strings.Replace(filepath.Base(unit), "@.", "@vm1.", 1)
		run(t, "systemd-analyze", "--root="+dest, "--man=no", "verify", name)
	}
}

// TestLocksAreForRootAndVDSM makes the directories as tmpfiles does, with
// another user in vdsm's place, and has that user take a lock of root's, and
// try to get rid of it. One more user must not get near it.
func TestLocksAreForRootAndVDSM(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: run as root, or set SKIP_INTEGRATION=1")
	}
	dest, err := os.MkdirTemp("", "diskhook")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dest) })
	if err := os.Chmod(dest, 0o755); err != nil {
		t.Fatal(err)
	}
	acl := strings.ReplaceAll(string(read(t, "../tmpfiles/diskhook-vdsm.conf")), "user:vdsm", "user:nobody")
	file := filepath.Join(dest, "diskhook-vdsm.conf")
	if err := os.WriteFile(file, []byte(acl), 0o644); err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs("../tmpfiles/diskhook.conf")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "systemd-tmpfiles", "--root="+dest, "--create", here, file)

	locks := dest + "/run/diskhook/lock"
	if f, err := os.OpenFile(locks+"/held", os.O_RDWR|os.O_CREATE, 0o660); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	// Who could remove the file of a held lock, or move it away, would have the
	// next one lock a new file.
	const nobody, daemon = 65534, 1
	for script, permitted := range map[string]bool{
		`exec 9<>"$1/held" && flock -n 9`: true,
		`rm -f "$1/held"`:                 false,
		`mv "$1/held" "$1/moved"`:         false,
		`: >"$1/new"`:                     false,
		`ls "$1"`:                         false,
	} {
		if out, err := as(t, nobody, "sh", "-c", script, "sh", locks); (err == nil) != permitted {
			t.Errorf("the user with the ACL: %s: %v: %s", script, err, out)
		}
		if out, err := as(t, daemon, "sh", "-c", script, "sh", locks); err == nil {
			t.Errorf("any user may: %s: %s", script, out)
		}
	}
}

// TestClustersHavePlace: the definition of a thin cluster is copied from host to host,
// into a directory that is there, and root's alone.
func TestClustersHavePlace(t *testing.T) {
	dest := t.TempDir()
	here, err := filepath.Abs("../tmpfiles/diskhook.conf")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "systemd-tmpfiles", "--root="+dest, "--create", here)
	info, err := os.Stat(dest + "/etc/diskhook/clusters.d")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("it has mode %v", info.Mode())
	}
}

func withAdminsHook(t *testing.T) (dest string) {
	t.Helper()
	dest = t.TempDir()
	if err := os.MkdirAll(filepath.Dir(dest+adminsHook), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dest+adminsHook, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dest
}

// programs is where all tests of this package build; bin/ may be in use.
var programs = filepath.Join(os.TempDir(), fmt.Sprintf("diskhook-install-test.%d", os.Getpid()))

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

func makeTarget(t *testing.T, arguments ...string) {
	t.Helper()
	run(t, "make", append([]string{"--no-print-directory", "-C", "../..", "out=" + programs}, arguments...)...)
}

func run(t *testing.T, name string, arguments ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arguments, " "), err, out)
	}
}

func as(t *testing.T, uid uint32, name string, arguments ...string) ([]byte, error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), name, arguments...)
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return command.CombinedOutput()
}

// listing is every file below dest with its mode, every symlink with its target.
func listing(t *testing.T, dest string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dest, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, dest)
		if entry.Type() == fs.ModeSymlink {
			target, err := os.Readlink(path)
			files = append(files, name+" -> "+target)
			return err
		}
		info, err := entry.Info()
		files = append(files, fmt.Sprintf("%s %s", info.Mode(), name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// shipped are the files of a folder of contrib as they must be installed: man
// pages of one section, or all files.
func shipped(t *testing.T, folder, directory, section string) []string {
	t.Helper()
	suffix := ".*"
	if section != "" {
		suffix = "." + section
	}
	names, err := filepath.Glob(folder + "/*" + suffix)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: nothing to install: %v", folder, err)
	}
	var files []string
	for _, name := range names {
		files = append(files, "-rw-r--r-- "+directory+section+"/"+filepath.Base(name))
	}
	return files
}

func equal(t *testing.T, want, got []string) {
	t.Helper()
	sort.Strings(want)
	sort.Strings(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
