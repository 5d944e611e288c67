// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"slices"

	"github.com/beevik/etree"
)

// originParts are the children of a disk that say where its data is. They are
// kept while the disk is bound, and put back after.
var originParts = []string{"driver", "auth", "threshold", "source", "backingStore"}

// quorumAttrs are the attributes of a <disk> that only a quorum has.
var quorumAttrs = []string{"threshold", "read_pattern", "blkverify"}

// Origin returns what BoundDisk.Origin keeps of a disk: a <disk> element with
// its type and, byte for byte, its driver, auth, source and backing chain.
func (d *Document) Origin(target string) ([]byte, error) {
	i, err := d.findDisk(target)
	if err != nil {
		return nil, err
	}
	known := origins{}
	e := readTree(d.pieces[i].raw, d.pieces[i].in, known)
	w := &writer{known: known, quote: d.quote}
	w.text("<disk")
	for _, key := range append([]string{"type", "device", "snapshot"}, quorumAttrs...) {
		if value := attr(e, key); value != "" {
			w.attr(key, value)
		}
	}
	w.text(">")
	for _, part := range partsOf(e) {
		w.node(part)
	}
	w.text("</disk>")
	return w.out, nil
}

// OriginDisk reads Origin as a disk. Nothing but type, driver, source and chain
// means anything in it.
func (b *BoundDisk) OriginDisk() (*Disk, error) {
	doc, err := Parse(b.Origin)
	if err != nil {
		return nil, fmt.Errorf("disk %s: origin: %w", clip(b.Target), err)
	}
	disks := doc.Disks()
	if len(disks) != 1 {
		return nil, fmt.Errorf("disk %s: origin: %w: it is no <disk>", clip(b.Target), ErrMetadata)
	}
	return disks[0], nil
}

// RestoreOrigin gives a disk back the type, driver, source and backing chain
// that the domain's metadata keep of it. The metadata stay.
type RestoreOrigin struct{ Target string }

// Rewrite fails with ErrNotFound if the metadata keep no origin of the disk.
func (r RestoreOrigin) Rewrite(doc *Document) error {
	m, err := doc.Metadata()
	if err != nil {
		return err
	}
	b, ok := m.Disk(r.Target)
	if !ok || len(b.Origin) == 0 {
		return fmt.Errorf("disk %s: its origin: %w", clip(r.Target), ErrNotFound)
	}
	if _, err := b.OriginDisk(); err != nil {
		return err
	}
	return doc.editDisk(r.Target, func(ed *edit, disk *etree.Element) error {
		origin, err := ed.parse(b.Origin)
		if err != nil {
			return err
		}
		now, keys := partsOf(disk), append([]string{"type"}, quorumAttrs...)
		if attr(disk, "type") == "vhostuser" {
			keys = append(keys, "snapshot") // libvirt itself sets it there
		}
		for _, key := range keys {
			if value := attr(origin, key); value != "" {
				disk.CreateAttr(key, value)
			} else {
				disk.RemoveAttr(key)
			}
		}
		ed.restoreParts(disk, now, partsOf(origin))
		return nil
	})
}

// partsOf returns the children of a disk that say where its data is, in the
// order of originParts. A quorum has several backing chains; of any other disk
// the first one counts.
func partsOf(disk *etree.Element) (parts []*etree.Element) {
	for _, name := range originParts {
		named := children(disk, name)
		if len(named) > 1 && !isQuorum(disk) {
			named = named[:1]
		}
		parts = append(parts, named...)
	}
	return parts
}

// restoreParts puts the parts of an origin into disk for the present ones: each
// into the place of one of its name, else next to the part that libvirt writes
// before it. If none has a place, the first one has that of the first to go.
func (ed *edit) restoreParts(disk *etree.Element, now, origin []*etree.Element) {
	placed, free := make([]bool, len(origin)), true
	for i, was := range origin {
		if j := slices.IndexFunc(now, func(e *etree.Element) bool { return e.Tag == was.Tag }); j >= 0 {
			replace(now[j], was)
			now = slices.Delete(now, j, j+1)
			placed[i] = true
			free = free && was.Tag == "driver"
		}
	}
	for i, was := range origin {
		j := slices.IndexFunc(now, func(e *etree.Element) bool { return e.Tag != "driver" })
		switch {
		case placed[i]:
		case free && j >= 0 && was.Tag != "driver":
			replace(now[j], was)
			now, free = slices.Delete(now, j, j+1), false
		case i > 0:
			ed.insertAfter(origin[i-1], was)
		default:
			ed.insertFirst(disk, was)
		}
	}
	for _, gone := range now {
		remove(gone)
	}
}

// insertFirst makes e the first child element.
func (ed *edit) insertFirst(parent, e *etree.Element) {
	for first := range parent.ChildElementsSeq() {
		ed.insertBefore(first, e)
		return
	}
	parent.AddChild(e)
}
