// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"path/filepath"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
)

// IsLocal says whether path lies where copies are kept.
func (h *Host) IsLocal(path string) bool {
	for _, dir := range []string{"/dev/" + h.Config.Local.VG, h.Config.Local.Dir, h.Layout.Links()} {
		if within(path, dir) {
			return true
		}
	}
	// Other volumes of a thin cluster are sources like any.
	if within(path, filepath.Join(h.Layout.Run(), "thin")) && localdisk.NamesCopy(filepath.Base(path)) {
		return true
	}
	// device-mapper doubles the hyphens of both names (dm names, lvm(8)).
	return strings.HasPrefix(path, "/dev/mapper/"+strings.ReplaceAll(h.Config.Local.VG, "-", "--")+"-")
}

// runsOnCopy says whether the disk's own copy is its source, with nothing above
// it: no snapshot, and no other image.
func (h *Host) runsOnCopy(d Domain, b Bound) bool {
	if d.OVirt {
		return b.Disk.Path == h.home(b).Path
	}
	return b.Disk.Path == localdisk.StablePath(h.Layout, d.UUID, b.Disk.Target) && !b.overlaid()
}

// overlaid says that a disk that was bound has another source than its copy
// now. Where that has not drifted, it is a snapshot on top of the copy.
func (b Bound) overlaid() bool { return b.Recorded != nil && b.Disk.Path != b.Recorded.Source }

// uncovered refuses to make a copy below a snapshot: it would not be what the
// snapshot was taken of, and the guest would see a mix of both.
func uncovered(d Domain, b Bound) error {
	err := failure.New(failure.Conflict, "%s: disk %s: %s is a snapshot on top of its local copy, but this host has no receipt for that copy, and one made anew would not fit below it", d, b.Disk.Target, describe(b.Disk))
	return failure.Hint(err, "bring the copy back and run `diskhook local adopt %s %s`, or go on without what the guest wrote: set the source to %s with `virsh edit %s`, then run `diskhook local recreate --discard-guest-data %s %s`",
		d.NameArg(), b.Disk.Target, b.Recorded.Source, d.NameArg(), d.NameArg(), b.Disk.Target)
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

// home is where the copy of an oVirt disk lies.
func (h *Host) home(b Bound) Placement {
	if backend := cmp.Or(b.Binding.Value, h.Config.Local.Backend); backend == "dir" {
		return Placement{b.Disk.Target, filepath.Join(h.Config.Local.Dir, b.Disk.Volume+".raw"), false}
	}
	return Placement{b.Disk.Target, filepath.Join("/dev", h.Config.Local.VG, b.Disk.Volume), true}
}
