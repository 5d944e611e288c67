// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
	"diskhook/storage/lvm"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// tool is a program that diskhook runs.
type tool struct {
	name    string
	version []string // arguments that make it tell its version; nil: it has none
	needed  bool
	why     string
	install string
}

func tools(h *Host) []tool {
	return []tool{
		{"qemu-img", []string{"--version"}, true, "copies disks", "install qemu-utils (Debian) or qemu-img (Fedora, EL)"},
		{"prlimit", nil, true, "bounds what reads images", "install util-linux"},
		{"lvm", []string{"version"}, h.lvmUsed(), "backends lvm and lvmthin", "install lvm2"},
		{"systemd-run", nil, false, "runs copies apart from the hook that asked for them", "install systemd, or accept a plain session"},
		{"virt-xml-validate", nil, false, "checks XML by hand", "install libvirt-clients (Debian) or libvirt-client (Fedora, EL)"},
	}
}

func programs(ctx context.Context, h *Host) []Finding {
	var found []Finding
	for _, t := range tools(h) {
		path, err := command.Find(t.name)
		switch {
		case err == nil:
			found = append(found, ok("%s: %s", path, h.version(ctx, t)))
		case t.needed:
			found = append(found, fail(t.install, "%s is missing: %s", t.name, t.why))
		default:
			found = append(found, warn(t.install, "%s is missing: %s", t.name, t.why))
		}
	}
	if _, err := command.Find(h.DomainProgram); err != nil {
		found = append(found, warn("install the package that has diskhook-domain, or leave it on hosts of oVirt", "%s is missing: it talks to libvirt for `diskhook domain`", h.DomainProgram))
	} else {
		found = append(found, ok("%s is there", h.DomainProgram))
	}
	return found
}

// version is the first line in which the program says it.
func (h *Host) version(ctx context.Context, t tool) string {
	if t.version == nil {
		return t.why
	}
	result, err := h.Run.Run(ctx, command.Cmd{Name: t.name, Args: t.version, Timeout: 10 * time.Second})
	if err != nil {
		return "its version is not known: " + failure.OneLine(err.Error())
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(result.Stdout)), "\n")
	return failure.OneLine(first)
}

// storage looks where the configured backend keeps copies.
func storage(ctx context.Context, h *Host) []Finding {
	switch {
	case h.lvmUsed():
		return volumeGroup(ctx, h)
	case h.Config.Local.Backend == "thin":
		if err := h.Local.Available(ctx); err != nil {
			return []Finding{failed(err)}
		}
		return []Finding{ok("thin cluster: the pool of this host runs, and there is room")}
	}
	return []Finding{fileSystem(h)}
}

func fileSystem(h *Host) Finding {
	dir := h.Config.Local.Dir
	var st unix.Statfs_t
	if err := unix.Statfs(nearest(dir), &st); err != nil {
		return fail("make the directory, or set local.dir in diskhook.toml", "%s: %v", dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free < int64(h.Config.Local.Reserve) {
		return fail("free some space, or lower local.reserve in diskhook.toml", "%s: %s are free, less than the reserve of %s", dir, sizeOf(free), sizeOf(int64(h.Config.Local.Reserve)))
	}
	return ok("%s: %s are free", dir, sizeOf(free))
}

func volumeGroup(ctx context.Context, h *Host) []Finding {
	l := lvm.LVM{Run: h.Run, Devices: h.Config.LVM.Devices, Timeout: time.Duration(h.Config.LVM.Timeout)}
	vg := h.Config.Local.VG
	report, err := l.Report(ctx, vg)
	if err != nil {
		f := failed(err)
		if f.Fix == "" {
			f.Fix = "vgcreate " + vg + " DEVICE, or set local.vg or local.backend in diskhook.toml"
		}
		return []Finding{f}
	}
	if h.Config.Local.Backend != "lvmthin" {
		if report.VG.Free < int64(h.Config.Local.Reserve) {
			return []Finding{fail("vgextend "+vg+" DEVICE", "vg %s: %s are free, less than the reserve", vg, sizeOf(report.VG.Free))}
		}
		return []Finding{ok("vg %s: %s of %s are free", vg, sizeOf(report.VG.Free), sizeOf(report.VG.Size))}
	}
	name := h.Config.Local.Pool
	pool, there := report.LV(name)
	switch full := pool.DataPercent; {
	case !there:
		return []Finding{fail("lvcreate --type thin-pool -l 90%FREE -n "+name+" "+vg, "thin pool %s/%s is missing", vg, name)}
	case !pool.Attr.Pool():
		return []Finding{fail("set local.pool in diskhook.toml", "lv %s/%s is no thin pool", vg, name)}
	case full > float64(100-h.Config.Local.PoolReserve):
		return []Finding{fail("lvextend -l +100%FREE "+vg+"/"+name, "thin pool %s/%s: %.1f %% of its data is used", vg, name, full)}
	case pool.MetadataPercent > 80:
		return []Finding{fail("lvextend --poolmetadatasize +1G "+vg+"/"+name, "thin pool %s/%s: %.1f %% of its metadata is used", vg, name, pool.MetadataPercent)}
	case !pool.Attr.Zeroes():
		return []Finding{warn("lvchange --zero y "+vg+"/"+name, "thin pool %s/%s does not zero new blocks: copies are zeroed by writing", vg, name)}
	default:
		return []Finding{ok("thin pool %s/%s: %.1f %% of %s is used", vg, name, full, sizeOf(pool.Size))}
	}
}

func sizeOf(n int64) string { return humanize.IBytes(uint64(max(0, n))) }
