// SPDX-License-Identifier: Apache-2.0

package vdsm

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/google/uuid"

	"diskhook/hooks/bindings"
	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/xmlrewrite"
)

// The ids of a disk say which copy is its own. They are in oVirt's metadata,
// which XML of one disk does not have, and another hook may have dropped. Then
// its path tells, in one of VDSM's forms:
//
//	…/DOMAIN/images/IMAGE/VOLUME       /rhev/data-center, file and block domains
//	/run/vdsm/storage/DOMAIN/IMAGE/VOLUME
//	/dev/DOMAIN/VOLUME                 the logical volume of a block domain
//
// or that of its copy, which is called by the volume. VDSM makes the image the
// serial of the disk.

// readDisk is the disk x, of which oVirt's metadata tell as much as told.
func (v *vm) readDisk(x *xmlrewrite.Disk, told xmlrewrite.VDSMDevice) bindings.Disk {
	image := told.GUID == "" && told.RBD == "" && !told.Managed
	if image && told.ImageID == "" && told.VolumeID == "" {
		ids := v.idsOf(x)
		ids.Shared = told.Shared
		told = ids
	}
	disk := bindings.ReadDisk(x, true, told)
	fit := bindings.ReadDisk(x, false, told).Unfit == ""
	if fit && image && (disk.Image == "" || disk.Volume == "") && v.mayBeImage(disk.Path) {
		v.unknown = append(v.unknown, disk)
	}
	return disk
}

// idsOf takes the ids from the path and the serial; none, if they disagree.
func (v *vm) idsOf(x *xmlrewrite.Disk) xmlrewrite.VDSMDevice {
	ids := v.idsInPath(path.Clean(x.Source.Path()))
	switch {
	case ids.VolumeID == "" || ids.ImageID != "" && x.Serial != "" && x.Serial != ids.ImageID:
		return xmlrewrite.VDSMDevice{}
	case ids.ImageID == "":
		ids.ImageID = cmp.Or(v.imageOf(ids.VolumeID), idOrNone(x.Serial))
	}
	if ids.ImageID == "" {
		return xmlrewrite.VDSMDevice{}
	}
	return ids
}

func (v *vm) idsInPath(p string) xmlrewrite.VDSMDevice {
	parts := strings.Split(p, "/")
	last := func(n int) string { return parts[max(0, len(parts)-n)] }
	image := xmlrewrite.VDSMDevice{ImageID: last(2), VolumeID: last(1)}
	areIDs := func(ids ...string) bool {
		return !slices.ContainsFunc(ids, func(id string) bool { return !isID(id) })
	}
	switch dir := path.Dir(p); {
	case last(3) == "images" && areIDs(last(4), last(2), last(1)):
		image.DomainID = last(4)
		return image
	case strings.HasPrefix(p, "/run/vdsm/storage/") && len(parts) == 7 && areIDs(parts[4:]...):
		image.DomainID = last(3)
		return image
	case path.Dir(dir) == "/dev" && areIDs(last(2), last(1)):
		return xmlrewrite.VDSMDevice{DomainID: last(2), VolumeID: last(1)}
	case v.IsLocal(p) && dir == v.Config.Local.Dir:
		return xmlrewrite.VDSMDevice{VolumeID: idOrNone(strings.TrimSuffix(last(1), ".raw"))}
	case v.IsLocal(p):
		return xmlrewrite.VDSMDevice{VolumeID: idOrNone(last(1))}
	}
	return xmlrewrite.VDSMDevice{}
}

// imageOf finds the image of a volume among the VM's receipts, which root can
// list, and the user vdsm can not.
func (v *vm) imageOf(volume string) string {
	receipts, _ := localdisk.Receipts(v.Layout, v.id)
	for _, r := range receipts {
		if r.Volume == volume {
			return r.Image
		}
	}
	return ""
}

func isID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && u.String() == s
}

func idOrNone(s string) string {
	if isID(s) {
		return s
	}
	return ""
}

// identified refuses a VM with a disk that a binding is meant for and that may
// be an image, but nobody can tell which: it may have a copy, and the guest
// must see neither a second one nor what that was made from.
func (v *vm) identified(d bindings.Domain) error {
	for _, disk := range v.unknown {
		meant := func(b bindings.Binding) bool {
			return b.Kind == "local" && (!b.Named() || b.Select == disk.Target || b.Select == disk.Serial)
		}
		if _, recorded := d.Metadata.Disk(disk.Target); recorded || slices.ContainsFunc(v.written, meant) {
			err := failure.New(failure.Precondition, "%s: disk %s: nothing tells which image of oVirt %s is (serial %q)", d, disk.Target, failure.OneLine(disk.Path), failure.OneLine(disk.Serial))
			return failure.Hint(err, "see which hook took its <ovirt-vm:device> out of the metadata, or name the disks that are meant in the property, as in diskhook='sda:local=lvm'")
		}
	}
	return nil
}

// mayBeImage is false for the nodes of LUNs and managed volumes.
func (v *vm) mayBeImage(p string) bool {
	parts := strings.Split(path.Clean(p), "/")
	switch {
	case v.IsLocal(p):
		return true
	case strings.HasPrefix(p, "/dev/"):
		return len(parts) > 3 && isID(parts[2]) // a volume group of VDSM's
	}
	return !strings.HasPrefix(p, "/run/vdsm/managedvolumes/")
}
