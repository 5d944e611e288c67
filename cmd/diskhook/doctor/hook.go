// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mark is in every build of qemu-hook: the namespace that it looks for.
const mark = "urn:diskhook:1"

// hookFiles are the places from which libvirt would run our hook: qemu itself,
// or what is in qemu.d, in the order in which libvirt runs them.
func (h *Host) hookFiles() []string {
	dir := h.at("/etc/libvirt/hooks")
	paths := []string{filepath.Join(dir, "qemu")}
	more, _ := filepath.Glob(filepath.Join(dir, "qemu.d", "*"))
	slices.Sort(more)
	var ours []string
	for _, path := range append(paths, more...) {
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(mark)) || strings.Contains(filepath.Base(path), "diskhook") {
			ours = append(ours, path)
		}
	}
	return ours
}

// daemons that run qemu hooks, in the kernel's fifteen characters.
var daemons = [...]string{"libvirtd", "virtqemud"}

func (h *Host) libvirtInstalled() bool {
	for _, d := range daemons {
		if present(h.at("/usr/sbin/"+d)) || h.started(d) != nil {
			return true
		}
	}
	return present(h.at("/etc/libvirt"))
}

func libvirtHook(_ context.Context, h *Host) []Finding {
	const install = "install -D /usr/libexec/diskhook/qemu-hook /etc/libvirt/hooks/qemu.d/50-diskhook, then systemctl reload libvirtd (or virtqemud)"
	ours := h.hookFiles()
	switch {
	case !h.libvirtInstalled():
		return []Finding{ok("libvirt is not installed here")}
	case present(h.at("/usr/libexec/vdsm/hooks")) && len(ours) == 0:
		return []Finding{ok("VDSM calls the hooks here, libvirt does not have to")}
	case len(ours) == 0:
		return []Finding{fail(install, "the hook is not installed: bound domains do not start, as nobody makes their disks")}
	}
	var found []Finding
	for _, path := range ours {
		if f, bad := executable(h.Layout, path); bad {
			found = append(found, f)
		}
	}
	if len(ours) > 1 {
		found = append(found, warn("rm "+ours[0], "the hook is installed %d times: %s", len(ours), strings.Join(ours, ", ")))
	}
	if len(found) == 0 {
		found = append(found, ok("%s", ours[0]))
	}
	return found
}

// libvirtReload: a daemon looks for hooks when it starts and at SIGHUP, and
// then only whether there are any.
func libvirtReload(_ context.Context, h *Host) []Finding {
	ours := h.hookFiles()
	if len(ours) == 0 {
		return []Finding{ok("nothing to load")}
	}
	st, err := os.Stat(ours[0])
	if err != nil {
		return []Finding{warn("see libvirt-hook", "%v", err)}
	}
	for _, name := range daemons {
		began := h.started(name)
		if began == nil {
			continue
		}
		if began.Add(clockSlack).Before(st.ModTime()) {
			return []Finding{warn("systemctl reload "+name, "%s has run since %s, the hook is of %s: unless it was reloaded it may not know that it has hooks",
				name, began.Format(time.DateTime), st.ModTime().Format(time.DateTime))}
		}
		return []Finding{ok("%s was started after the hook was installed", name)}
	}
	return []Finding{ok("no daemon of libvirt runs")}
}

// clockSlack is by how much the start of a process may seem too early: the time
// of boot is known to the second.
const clockSlack = 2 * time.Second

// started is when the oldest process of that name was started; nil: none runs.
func (h *Host) started(name string) *time.Time {
	boot, ok := h.bootTime()
	if !ok {
		return nil
	}
	var oldest *time.Time
	paths, _ := filepath.Glob(filepath.Join(h.Proc, "[0-9]*", "stat"))
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// PID (COMM) STATE …, where COMM may have anything in it; the 22nd
		// field is the start in ticks of 10 ms since boot (proc_pid_stat(5)).
		text := string(b)
		from, to := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		if from < 0 || to < from || text[from+1:to] != name {
			continue
		}
		fields := strings.Fields(text[to+1:])
		if len(fields) < 20 {
			continue
		}
		ticks, err := strconv.ParseInt(fields[19], 10, 64)
		if err != nil {
			continue
		}
		at := boot.Add(time.Duration(ticks) * 10 * time.Millisecond)
		if oldest == nil || at.Before(*oldest) {
			oldest = &at
		}
	}
	return oldest
}

func (h *Host) bootTime() (time.Time, bool) {
	b, err := os.ReadFile(filepath.Join(h.Proc, "stat"))
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(string(b)) {
		if text, found := strings.CutPrefix(line, "btime "); found {
			seconds, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Unix(seconds, 0), err == nil
		}
	}
	return time.Time{}, false
}

// confinement: SELinux and AppArmor decide whether libvirt may run the hook,
// and what the hook may run.
func confinement(_ context.Context, h *Host) []Finding {
	var found []Finding
	for _, path := range h.hookFiles() {
		found = append(found, h.selinux(path)...)
		found = append(found, h.appArmor(path)...)
	}
	if len(found) == 0 {
		return []Finding{ok("neither SELinux nor AppArmor stands in the way")}
	}
	return found
}

func (h *Host) selinux(path string) []Finding {
	if read(h.at("/sys/fs/selinux/enforce")) != "1" {
		return nil
	}
	var found []Finding
	label := make([]byte, 256)
	n, err := unix.Getxattr(path, "security.selinux", label)
	switch {
	case errors.Is(err, unix.ENODATA), err == nil && !strings.Contains(string(label[:n]), "virt_hook"):
		found = append(found, fail("restorecon -v "+path, "%s has the SELinux label %q, not virt_hook_t: libvirt may not run it", path, strings.TrimRight(string(label[:max(0, n)]), "\x00")))
	case err != nil:
		found = append(found, warn("ls -Z "+path, "%s: its SELinux label: %v", path, err))
	}
	// "CURRENT PENDING", as in selinuxfs.
	if state := read(h.at("/sys/fs/selinux/booleans/virt_hooks_unconfined")); strings.HasPrefix(state, "0") {
		found = append(found, warn("setsebool -P virt_hooks_unconfined on", "SELinux is enforcing and virt_hooks_unconfined is off: the hook may not run diskhook and LVM"))
	}
	return found
}

// appArmor: libvirtd's profile lets hooks below /etc/libvirt/hooks run inside
// the profile; a symlink is judged by what it points to.
func (h *Host) appArmor(path string) []Finding {
	if read(h.at("/sys/module/apparmor/parameters/enabled")) != "Y" {
		return nil
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil || target == path {
		return nil
	}
	for _, dir := range []string{"/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/", "/etc/libvirt/hooks/"} {
		if strings.HasPrefix(target, h.at(dir)) {
			return nil
		}
	}
	return []Finding{fail("cp --remove-destination "+target+" "+path, "AppArmor: %s is a symlink to %s, which libvirtd's profile does not let it run", path, target)}
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// libvirtAccess looks whether there is a libvirt that could be asked.
func libvirtAccess(_ context.Context, h *Host) []Finding {
	if !h.libvirtInstalled() {
		return []Finding{ok("not installed here: only `diskhook domain` needs it")}
	}
	for _, socket := range []string{"virtqemud-sock", "libvirt-sock"} {
		st, err := os.Stat(h.at("/run/libvirt/" + socket))
		if err == nil && st.Mode()&fs.ModeSocket != 0 {
			return []Finding{ok("%s answers for qemu:///system", h.at("/run/libvirt/"+socket))}
		}
	}
	return []Finding{warn("systemctl start libvirtd.socket (or virtqemud.socket)", "libvirt is installed, but no daemon listens")}
}
