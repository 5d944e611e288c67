// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"

	"github.com/beevik/etree"
)

// originParts are the children of a disk that say where its data is. They are
// kept while the disk is bound, and put back after.
var originParts = []string{"driver", "auth", "source", "backingStore"}

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
	for _, key := range []string{"type", "device"} {
		if value := attr(e, key); value != "" {
			w.attr(key, value)
		}
	}
	w.text(">")
	for _, name := range originParts {
		if c := child(e, name); c != nil {
			w.node(c)
		}
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
		if kind := attr(origin, "type"); kind != "" {
			disk.CreateAttr("type", kind)
		} else {
			disk.RemoveAttr("type")
		}
		ed.restoreParts(disk, origin)
		return nil
	})
}

// restoreParts moves origin's parts into disk: into the place of the present
// one, else next to the part that libvirt writes before or after it.
func (ed *edit) restoreParts(disk, origin *etree.Element) {
	var before *etree.Element // the part last seen
	for _, name := range originParts {
		now, was := child(disk, name), child(origin, name)
		switch {
		case was == nil:
			if now != nil {
				remove(now)
			}
			continue
		case now != nil:
			replace(now, was)
		case before != nil:
			ed.insertAfter(before, was)
		default:
			ed.insertFirst(disk, was)
		}
		before = was
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
