// SPDX-License-Identifier: Apache-2.0

//go:build integration

// Package packages tests what `make packages` makes.
package packages

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestDebian(t *testing.T) {
	dist := t.TempDir()
	run(t, "make", "--no-print-directory", "-C", "../..", "out="+t.TempDir(), "dist="+dist, "VERSION=v1.2.3-4-gabcdef0", "packages")

	host := contents(t, dist, "diskhook_1.2.3+4.gabcdef0_amd64.deb")
	vdsm := contents(t, dist, "vdsm-hook-diskhook_1.2.3+4.gabcdef0_amd64.deb")
	for path, mode := range map[string]string{
		"/usr/bin/diskhook":                                   "-rwxr-xr-x root/root",
		"/etc/libvirt/hooks/qemu.d/50-diskhook":               "-rwxr-xr-x root/root",
		"/usr/libexec/diskhook/diskhook-domain":               "-rwxr-xr-x root/root",
		"/usr/libexec/diskhook/diskhook-etcd":                 "-rwxr-xr-x root/root",
		"/usr/lib/tmpfiles.d/diskhook.conf":                   "-rw-r--r-- root/root",
		"/usr/lib/udev/rules.d/62-diskhook-volumes.rules":     "-rw-r--r-- root/root",
		"/usr/share/man/man8/diskhook.8":                      "-rw-r--r-- root/root",
		"/etc/libvirt/hooks/qemu":                             "",
		"/etc/sudoers.d/50_vdsm_hook_diskhook":                "",
		"/usr/libexec/vdsm/hooks/before_vm_start/50_diskhook": "",
	} {
		if host[path] != mode {
			t.Errorf("diskhook: %s is %q, want %q", path, host[path], mode)
		}
	}
	for path, mode := range map[string]string{
		"/etc/sudoers.d/50_vdsm_hook_diskhook":                "-r--r----- root/root",
		"/usr/libexec/vdsm/hooks/before_vm_start/50_diskhook": "l--------- root/root",
		"/usr/lib/udev/rules.d/61-diskhook-local.rules":       "-rw-r--r-- root/root",
		"/usr/libexec/diskhook/vdsm/managedvolumes":           "-rwxr-xr-x root/root",
		"/usr/libexec/diskhook/vdsm/managedvolume-helper":     "-rwxr-xr-x root/root",
		"/usr/libexec/vdsm/managedvolume-helper-diskhook":     "l--------- root/root",
		"/usr/libexec/vdsm/managedvolume-helper":              "", // VDSM's
		"/usr/bin/diskhook":                                   "",
	} {
		if vdsm[path] != mode {
			t.Errorf("vdsm-hook-diskhook: %s is %q, want %q", path, vdsm[path], mode)
		}
	}
	for path := range vdsm {
		if host[path] != "" {
			t.Errorf("%s is in both packages", path)
		}
	}
	for _, rpm := range []string{"diskhook-1.2.3+4.gabcdef0-1.x86_64.rpm", "vdsm-hook-diskhook-1.2.3+4.gabcdef0-1.x86_64.rpm"} {
		if out := run(t, "file", "-b", filepath.Join(dist, rpm)); !strings.HasPrefix(out, "RPM") {
			t.Errorf("%s: %s", rpm, out)
		}
	}
}

// contents are the files of a package, without directories: mode and owner.
func contents(t *testing.T, dist, name string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for line := range strings.Lines(run(t, "dpkg-deb", "-c", filepath.Join(dist, name))) {
		m := regexp.MustCompile(`^(\S+ \S+) .* \.(/\S*)( -> \S+)?$`).FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			t.Fatalf("not understood: %s", line)
		}
		if !strings.HasPrefix(m[1], "d") {
			files[m[2]] = m[1]
		}
	}
	return files
}

func run(t *testing.T, name string, arguments ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arguments, " "), err, out)
	}
	return string(out)
}
