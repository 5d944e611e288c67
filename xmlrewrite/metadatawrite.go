// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"slices"

	"github.com/beevik/etree"
)

// SetMetadata writes what the disks are bound to into the domain's <metadata>,
// for the domain's own uuid. It replaces diskhook's element alone, and creates
// <metadata> where it is missing. Without disks it is RemoveMetadata.
type SetMetadata struct{ Disks []BoundDisk }

// Rewrite fails with ErrMetadata if the disks do not make sense, or say that a
// newer diskhook wrote something that would be lost.
func (s SetMetadata) Rewrite(doc *Document) error {
	if len(s.Disks) == 0 {
		return RemoveMetadata{}.Rewrite(doc)
	}
	if _, err := doc.Metadata(); err != nil {
		return err
	}
	m := Metadata{Domain: doc.UUID(), Disks: s.Disks}
	if err := m.check(); err != nil {
		return err
	}
	for _, b := range s.Disks {
		if len(b.Unknown) > 0 {
			return fmt.Errorf("%w: disk %s: %s is of a newer diskhook", ErrMetadata, clip(b.Target), clip(b.Unknown[0]))
		}
		if len(b.Origin) > 0 {
			// It is written as it is, so it must be one whole element.
			for _, err := range tokens(b.Origin, surroundings{}) {
				if err != nil {
					return fmt.Errorf("disk %s: origin: %w", clip(b.Target), err)
				}
			}
		}
	}
	raw := m.write(doc.quote, doc.indent(2), doc.indent(3), doc.indent(4))
	return doc.edit(doc.metadataPiece(), func(ed *edit, metadata *etree.Element) error {
		ours, err := ed.parse(raw)
		if err != nil {
			return err
		}
		var last *etree.Element
		for e := range metadata.ChildElementsSeq() {
			if is(e, Namespace, "disks") {
				replace(e, ours)
				return nil
			}
			last = e
		}
		if last != nil {
			ed.insertAfter(last, ours)
			return nil
		}
		trim(metadata)
		metadata.AddChild(ed.space(doc.indent(2)))
		metadata.AddChild(ours)
		metadata.AddChild(ed.space(doc.indent(1)))
		return nil
	})
}

// RemoveMetadata takes diskhook's element out of <metadata>, and <metadata> too
// if nothing else is left in it.
type RemoveMetadata struct{}

// Rewrite removes a damaged element as well.
func (RemoveMetadata) Rewrite(doc *Document) error {
	for i := len(doc.pieces) - 1; i >= 0; i-- {
		if !doc.pieces[i].isMetadata() {
			continue
		}
		removed, empty := false, false
		err := doc.edit(i, func(_ *edit, metadata *etree.Element) error {
			for _, e := range metadata.ChildElements() {
				if is(e, Namespace, "disks") {
					remove(e)
					removed = true
				}
			}
			empty = len(metadata.Child) == 0
			return nil
		})
		if err != nil {
			return err
		}
		if removed && empty {
			doc.removePiece(i)
		}
	}
	return nil
}

// metadataPiece returns the index of <metadata>: of the one that holds our
// element, else of the first, else of a new one behind the elements that libvirt
// writes before it. (The schema takes it in any place.)
func (d *Document) metadataPiece() int {
	first, after := -1, -1
	for i, p := range d.pieces {
		if p.isMetadata() {
			if p.hasOurs() {
				return i
			}
			if first < 0 {
				first = i
			}
		}
		if p.kind == childPiece && p.uri == "" && slices.Contains([]string{"name", "uuid", "genid", "title", "description"}, p.local) {
			after = i
		}
	}
	if first >= 0 {
		return first
	}
	return d.insertChildAfter(after, piece{kind: childPiece, raw: []byte("<metadata/>"), local: "metadata", in: surroundings{depth: 1}})
}

func (p piece) hasOurs() bool {
	for e := range readTree(p.raw, p.in, nil).ChildElementsSeq() {
		if is(e, Namespace, "disks") {
			return true
		}
	}
	return false
}

// write renders the element; the strings are what goes before a line of each
// depth.
func (m *Metadata) write(quote byte, indent2, indent3, indent4 string) []byte {
	w := &writer{quote: quote}
	w.open("disks", []field{{"xmlns:dh", new(Namespace)}, {"domain", &m.Domain}}, ">")
	for i := range m.Disks {
		b := &m.Disks[i]
		w.text(indent3)
		w.open("disk", []field{{"target", &b.Target}, {"serial", &b.Serial}, {"source", &b.Source}}, ">")
		for _, e := range b.bindings() {
			w.text(indent4)
			w.open(e.name, e.fields, "/>")
		}
		if below := layers(b.OriginImage, b.OriginThin); len(b.Origin)+len(below) > 0 {
			w.text(indent4, "<dh:origin>", string(b.Origin))
			for _, e := range below {
				w.open(e.name, e.fields, "/>")
			}
			w.text("</dh:origin>")
		}
		w.text(indent3, "</dh:disk>")
	}
	w.text(indent2, "</dh:disks>")
	return w.out
}

// open writes a start tag of ours; empty fields are left out.
func (w *writer) open(name string, fields []field, end string) {
	w.text("<dh:", name)
	for _, f := range fields {
		if *f.at != "" {
			w.attr(f.name, *f.at)
		}
	}
	w.text(end)
}
