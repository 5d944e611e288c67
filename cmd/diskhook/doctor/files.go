// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"diskhook/storage/host"
)

// nearest is the deepest directory of path that exists.
func nearest(path string) string {
	for path != "/" {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

// directories looks whether anybody but root, or the owner of a moved root,
// could steer diskhook.
func directories(_ context.Context, h *Host) []Finding {
	var found []Finding
	l := h.Layout
	for _, dir := range []struct {
		path   string
		search bool // others must be able to search it
	}{
		{filepath.Dir(l.Config()), true}, {l.State(), true}, {l.Receipts(), true}, {l.LocalDir(), true},
		{l.Run(), true}, {l.Links(), true}, {l.Status(), true}, {l.Locks(), false},
	} {
		if f, bad := directory(l, dir.path, dir.search); bad {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		found = append(found, ok("those below %s and %s are as they should be", l.State(), l.Run()))
	}
	return found
}

func directory(l host.Layout, path string, search bool) (Finding, bool) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Finding{}, false // made when it is needed
	case err != nil:
		return warn("run doctor as root", "%v", err), true
	case !st.IsDir():
		return fail("mv "+path+" "+path+".old", "%s is not a directory", path), true
	case st.Mode()&0o002 != 0:
		return fail("chmod o-w "+path, "%s: anybody may write to it", path), true
	case path == filepath.Dir(l.Config()) && st.Mode()&0o020 != 0:
		// In the others the group's bits may be the mask of an ACL for vdsm.
		return fail("chmod go-w "+path, "%s: its group may write to it", path), true
	case l.Root == "" && owner(st) != 0:
		return fail("chown root "+path, "%s belongs to uid %d, not to root", path, owner(st)), true
	case search && st.Mode()&0o001 == 0:
		return warn("chmod o+x "+path, "%s: QEMU's user cannot search it", path), true
	}
	return Finding{}, false
}

func owner(st fs.FileInfo) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

// executable looks at a file that somebody is to run as root.
func executable(l host.Layout, path string) (Finding, bool) {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return fail("install the package diskhook again", "%v", err), true
	case st.Mode()&0o111 == 0:
		return fail("chmod 0755 "+path, "%s is not executable: it is skipped in silence, and no bound domain starts", path), true
	case st.Mode()&0o022 != 0:
		return fail("chmod 0755 "+path, "%s: others may write to it", path), true
	case l.Root == "" && owner(st) != 0:
		return fail("chown root "+path, "%s belongs to uid %d, not to root", path, owner(st)), true
	}
	return Finding{}, false
}

// vdsm looks at what VDSM's hooks need, on hosts that have VDSM.
func vdsm(_ context.Context, h *Host) []Finding {
	hooks := h.at("/usr/libexec/vdsm/hooks")
	if _, err := os.Stat(hooks); err != nil {
		return []Finding{ok("VDSM is not installed here")}
	}
	const install = "make install-vdsm, or install the package vdsm-hook-diskhook"
	var found []Finding
	installed := 0
	for _, point := range vdsmPoints {
		path := filepath.Join(hooks, point, "50_diskhook")
		if _, err := os.Lstat(path); err != nil {
			found = append(found, warn(install, "hook point %s: diskhook is not installed there", point))
			continue
		}
		installed++
		if f, bad := executable(h.Layout, path); bad {
			found = append(found, f)
		}
		if old := filepath.Join(hooks, point, "10_localdisk"); present(old) {
			found = append(found, fail("remove the package vdsm-hook-localdisk", "%s is installed, too: both would copy the disk", old))
		}
	}
	if installed == 0 {
		return []Finding{warn(install, "VDSM is installed, its hooks of diskhook are not")}
	}
	for _, file := range []struct{ path, why string }{
		{"/usr/libexec/diskhook/diskhook-helper", "hooks of VDSM cannot work on LVM"},
		{"/etc/sudoers.d/50_vdsm_hook_diskhook", "user vdsm may not run the helper"},
		{"/usr/lib/udev/rules.d/61-diskhook-local.rules", "volumes would not belong to vdsm:qemu"},
	} {
		if !present(h.at(file.path)) {
			found = append(found, fail(install, "%s is missing: %s", h.at(file.path), file.why))
		}
	}
	if st, err := os.Stat(h.at("/etc/sudoers.d/50_vdsm_hook_diskhook")); err == nil && st.Mode().Perm() != 0o440 {
		found = append(found, fail(fmt.Sprintf("chmod 0440 %s", h.at("/etc/sudoers.d/50_vdsm_hook_diskhook")), "the rule for sudo has mode %o: sudo ignores it", st.Mode().Perm()))
	}
	if len(found) == 0 {
		found = append(found, ok("all %d hook points, sudo and udev rules are in place", installed))
	}
	return found
}

// vdsmPoints are the hook points at which diskhook has something to do.
var vdsmPoints = [...]string{
	"after_disk_prepare", "before_vm_start", "before_disk_hotplug", "after_disk_hotunplug", "before_vm_migrate_source",
	"after_vm_destroy", "before_vm_dehibernate", "after_vm_hibernate", "after_vm_dehibernate", "before_vdsm_start",
	"after_get_caps",
}

func present(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
