// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/xmlrewrite"
)

// Domain is what bindings have to know of a domain, be it from XML or from
// what VDSM tells about one disk.
type Domain struct {
	UUID string
	Name string
	// OVirt says that VDSM runs the domain: disks are named by oVirt's ids and
	// the hooks rewrite the domain at every start.
	OVirt bool
	// Partial says that there may be disks that were not told.
	Partial bool

	Disks    []Disk
	Metadata *xmlrewrite.Metadata // nil: none
}

// Disk is one disk of a domain.
type Disk struct {
	Target string
	Serial string
	Image  string // oVirt's id of the disk; "" elsewhere
	Volume string // oVirt's id of its leaf volume

	Type string // of its source: file, block, network, …
	Path string // of its file or block source, "" for others
	// Socket is that of a source behind a unix socket, or else what a disk of
	// replicas is known by: its first one.
	Socket string
	Format string
	// Element is what a disk of type quorum says, ElementErr why that cannot be
	// read.
	Element    *xmlrewrite.QuorumDisk
	ElementErr error

	// Chain are the layers below Path as far as they were told. Complete says
	// that there is nothing below the last one; else only image headers know.
	Chain    []imagecheck.Layer
	Complete bool

	ReadOnly bool

	// Unfit is why the disk cannot be bound by a binding for all disks; "" if it can.
	Unfit string
}

// At is where the disk's source is on this host: its path or its socket.
func (d Disk) At() string { return cmp.Or(d.Path, d.Socket) }

// Layers is the disk's chain, top first.
func (d Disk) Layers() []imagecheck.Layer {
	if d.Path == "" {
		return nil
	}
	return append([]imagecheck.Layer{{Path: d.Path, Format: d.Format}}, d.Chain...)
}

// is says whether a selector means the disk.
func (d Disk) is(selector string) bool {
	return selector == d.Target || selector == d.Serial || selector == d.Image
}

// NameArg is the domain as an argument of a command in a message: its name,
// unless that could be taken for an option or for more than one word.
func (d Domain) NameArg() string {
	if !isWord(d.Name) {
		return d.UUID
	}
	return d.Name
}

func (d Domain) String() string {
	if d.Name == "" {
		return "domain " + d.UUID
	}
	return "domain " + failure.OneLine(clip(d.Name))
}

// Disk returns the disk with that target.
func (d Domain) Disk(target string) (Disk, bool) {
	for _, disk := range d.Disks {
		if disk.Target == target {
			return disk, true
		}
	}
	return Disk{}, false
}

// ReadDomain takes from a document what bindings have to know.
func ReadDomain(doc *xmlrewrite.Document) (Domain, error) {
	d := Domain{UUID: doc.UUID(), Name: doc.Name()}
	metadata, err := doc.Metadata()
	if err != nil {
		err = fmt.Errorf("%s: %w", d, failure.Wrap(failure.Precondition, err))
		return d, failure.Hint(err, "repair the element <dh:disks> with `virsh edit %s`, or remove it with `diskhook domain unbind %s`", d.NameArg(), d.NameArg())
	}
	d.Metadata = metadata
	vdsm, ovirt := doc.VDSM()
	d.OVirt = ovirt
	for _, x := range doc.Disks() {
		disk := ReadDisk(x, ovirt, vdsm.Disks[x.Target])
		if disk.Type == "quorum" {
			disk.Element, _, disk.ElementErr = doc.Quorum(x.Target)
			if disk.ElementErr == nil {
				disk.ElementErr = disk.Element.Check()
			}
		}
		d.Disks = append(d.Disks, disk)
	}
	return d, nil
}

// ReadDisk is the disk x of a domain; of an oVirt domain, told is what its
// metadata say about the disk.
func ReadDisk(x *xmlrewrite.Disk, ovirt bool, told xmlrewrite.VDSMDevice) Disk {
	d := Disk{
		Target: x.Target, Serial: x.Serial, Image: told.ImageID, Volume: told.VolumeID,
		Type: x.Type, Format: x.Driver.Type, Complete: x.Terminated,
		ReadOnly: x.ReadOnly,
	}
	if x.Source.Type == "file" || x.Source.Type == "block" {
		d.Path = x.Source.Path()
	}
	if d.Path == "" {
		d.Socket = x.QuorumPath()
	}
	if d.Format == "" {
		d.Format = "raw" // what libvirt takes an image without format for
	}
	for _, layer := range x.Chain {
		d.Chain = append(d.Chain, imagecheck.Layer{Path: layer.Source.Path(), Format: layer.Format})
	}
	d.Unfit = unfit(x, ovirt, told)
	return d
}

// unfit is why a disk has no use for a binding.
func unfit(x *xmlrewrite.Disk, ovirt bool, told xmlrewrite.VDSMDevice) string {
	for _, why := range []struct {
		is   bool
		text string
	}{
		{namedVolume(x.Source.Path()) != "", isVolume},
		{x.Device == "cdrom", "it is a CD-ROM"},
		{x.Device == "floppy", "it is a floppy"},
		{x.Device == "lun" || told.GUID != "" && !told.Managed, "it is a LUN"},
		{told.Managed || told.RBD != "", isVolume},
		{x.ReadOnly, isReadOnly},
		{x.Shareable || isShared(told.Shared), "it is shared"},
		{x.Transient, "it is transient"},
		{x.Mirror, "a block copy of it is under way"},
		{x.Encrypted, "it is encrypted"},
		{x.Type != "file" && x.Type != "block", wrongSource(x.Type)},
		{x.Source.Path() == "", "it has no medium"},
		{ovirt && (told.ImageID == "" || told.VolumeID == ""), "it is not an image of oVirt"},
	} {
		if why.is {
			return why.text
		}
	}
	return ""
}

func wrongSource(kind string) string { return "its source is of type " + kind }

// isShared reads oVirt's word for who else uses a disk: "shareable",
// "exclusive" and "transient" are; "none", "false" and nothing are not.
func isShared(word string) bool {
	switch strings.ToLower(word) {
	case "", "none", "false":
		return false
	}
	return true
}

// within says whether path lies below dir; both are clean.
func within(path, dir string) bool {
	return strings.HasPrefix(filepath.Clean(path), strings.TrimSuffix(filepath.Clean(dir), "/")+"/")
}
