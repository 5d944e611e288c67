// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import "github.com/beevik/etree"

// VolumeDisk points a disk at a managed volume, which is raw. What belongs to
// the old source goes, as with LocalDisk. The guest stops at an I/O error
// unless the definition says otherwise: the volume is on a network.
type VolumeDisk struct {
	Target  string
	Path    string // absolute
	Block   bool   // a block device; else a file
	Format  string // "" means raw
	Discard bool   // the storage takes back what the guest discards
}

// Rewrite fails with ErrUnsupported if the volume could not stand for what the
// disk is.
func (v VolumeDisk) Rewrite(doc *Document) error {
	if err := (LocalDisk{Target: v.Target, Path: v.Path, Block: v.Block, Format: v.Format, Pause: true}).Rewrite(doc); err != nil {
		return err
	}
	return doc.EditDisk(v.Target, func(disk *etree.Element) error {
		if driver := disk.SelectElement("driver"); v.Discard && driver.SelectAttr("discard") == nil {
			driver.CreateAttr("discard", "unmap")
		}
		return nil
	})
}
