// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"path/filepath"
	"strings"

	"diskhook/storage/failure"
	"diskhook/xmlrewrite"
)

// IsLocal says whether path lies where copies are kept.
func (h *Host) IsLocal(path string) bool {
	for _, dir := range []string{"/dev/" + h.Config.Local.VG, h.Config.Local.Dir, h.Layout.Links()} {
		if within(path, dir) {
			return true
		}
	}
	// device-mapper doubles the hyphens of both names (dm names, lvm(8)).
	return strings.HasPrefix(path, "/dev/mapper/"+strings.ReplaceAll(h.Config.Local.VG, "-", "--")+"-")
}

// noSource refuses to fill a copy from a copy, or from nothing.
func noSource(d Domain, disk Disk) error {
	err := failure.New(failure.Precondition, "%s: disk %s: %s lies where local copies are kept, and is never a source", d, disk.Target, describe(disk))
	return failure.Hint(err, "give the disk its own source with `virsh edit %s` first", d.NameArg())
}

// Placed says whether the disk of an oVirt VM lies in its own copy already,
// because another hook point did the work. A path among the copies that is not
// the disk's own is refused: it is never a source.
func (h *Host) Placed(d Domain, b Bound) (Placement, bool, error) {
	if !h.IsLocal(b.Disk.Path) {
		return Placement{}, false, nil
	}
	p := h.home(b)
	if b.Disk.Path == p.Path {
		return p, true, nil
	}
	err := failure.New(failure.Conflict, "%s: disk %s: %s lies where local copies are kept, but is not the disk's own (%s)", d, b.Disk.Target, failure.OneLine(b.Disk.Path), p.Path)
	return p, false, failure.Hint(err, "give the disk its shared volume again, or see which hook changed it")
}

// expected are the rewrites that a VDSM hook would do once the disks are ready.
func (h *Host) expected(bound []Bound) []xmlrewrite.Rewriter {
	var all []xmlrewrite.Rewriter
	for _, b := range bound {
		p := h.home(b)
		all = append(all, xmlrewrite.LocalDisk{Target: p.Target, Path: p.Path, Block: p.Block})
	}
	return all
}

// home is where the copy of an oVirt disk lies.
func (h *Host) home(b Bound) Placement {
	if backend := cmp.Or(b.Binding.Value, h.Config.Local.Backend); backend == "dir" {
		return Placement{b.Disk.Target, filepath.Join(h.Config.Local.Dir, b.Disk.Volume+".raw"), false}
	}
	return Placement{b.Disk.Target, filepath.Join("/dev", h.Config.Local.VG, b.Disk.Volume), true}
}
