// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"strings"

	"github.com/beevik/etree"
)

// vdsmNamespace is that of oVirt's <vm> element in <metadata>.
const vdsmNamespace = "http://ovirt.org/vm/1.0"

// VDSMInfo is what oVirt tells about a domain and its disks.
type VDSMInfo struct {
	Custom map[string]string     // custom properties of the VM
	Disks  map[string]VDSMDevice // by target
}

// VDSMDevice is what oVirt tells about a disk. A disk of an image has the four
// ids, a LUN has GUID, a managed volume has Managed with GUID or RBD (its path).
type VDSMDevice struct {
	PoolID, DomainID, ImageID, VolumeID string
	GUID, RBD                           string
	Shared                              string // shareable, exclusive, transient
	Managed                             bool
}

// VDSM reads oVirt's metadata; false if the domain is not oVirt's.
func (d *Document) VDSM() (VDSMInfo, bool) {
	for _, metadata := range d.Children("", "metadata") {
		for vm := range metadata.ChildElementsSeq() {
			if is(vm, vdsmNamespace, "vm") {
				return readVDSM(vm), true
			}
		}
	}
	return VDSMInfo{}, false
}

func readVDSM(vm *etree.Element) VDSMInfo {
	info := VDSMInfo{map[string]string{}, map[string]VDSMDevice{}}
	for e := range vm.ChildElementsSeq() {
		switch {
		case is(e, vdsmNamespace, "custom"):
			for property := range e.ChildElementsSeq() {
				if property.NamespaceURI() == vdsmNamespace {
					info.Custom[property.Tag] = strings.TrimSpace(textOf(property))
				}
			}
		case is(e, vdsmNamespace, "device") && attr(e, "devtype") == "disk":
			if target := attr(e, "name"); target != "" {
				info.Disks[target] = readVDSMDevice(e)
			}
		}
	}
	return info
}

func readVDSMDevice(e *etree.Element) VDSMDevice {
	var d VDSMDevice
	places := map[string]*string{
		"poolID": &d.PoolID, "domainID": &d.DomainID, "imageID": &d.ImageID, "volumeID": &d.VolumeID,
		"GUID": &d.GUID, "RBD": &d.RBD, "shared": &d.Shared,
	}
	for c := range e.ChildElementsSeq() {
		if c.NamespaceURI() != vdsmNamespace {
			continue
		}
		text := strings.TrimSpace(textOf(c))
		if c.Tag == "managed" {
			// Engine writes "true" without a type, VDSM "True" with type="bool".
			// Anything that is not clearly a no is taken as a yes: a managed
			// volume must never be mistaken for an image.
			d.Managed = text != "" && text != "0" && !strings.EqualFold(text, "false")
		} else if place := places[c.Tag]; place != nil {
			*place = text
		}
	}
	return d
}
