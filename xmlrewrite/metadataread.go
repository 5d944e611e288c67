// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"bytes"
	"fmt"

	"github.com/beevik/etree"
)

// Metadata reads what diskhook wrote into the domain's <metadata>. Without it
// both results are nil. What is damaged, or there twice, is ErrMetadata; what
// only a newer diskhook understands is told in BoundDisk.Unknown.
func (d *Document) Metadata() (*Metadata, error) {
	var found *Metadata
	for _, p := range d.pieces {
		if !p.isMetadata() {
			continue
		}
		known := origins{}
		for e := range readTree(p.raw, p.in, known).ChildElementsSeq() {
			if !is(e, Namespace, "disks") {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("%w: it is there twice", ErrMetadata)
			}
			var err error
			if found, err = readMetadata(e, known); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

func (p piece) isMetadata() bool {
	return p.kind == childPiece && p.uri == "" && p.local == "metadata"
}

func readMetadata(e *etree.Element, known origins) (*Metadata, error) {
	m := &Metadata{}
	if unknown := readFields(e, []field{{"domain", &m.Domain}}); len(unknown) > 0 {
		return nil, fmt.Errorf("%w: unknown attribute %s", ErrMetadata, clip(unknown[0]))
	}
	m.Domain = canonicalUUID(m.Domain)
	for c := range e.ChildElementsSeq() {
		if !is(c, Namespace, "disk") {
			return nil, fmt.Errorf("%w: unknown element %s", ErrMetadata, clip(c.FullTag()))
		}
		m.Disks = append(m.Disks, readBoundDisk(c, known))
	}
	return m, m.check()
}

func readBoundDisk(e *etree.Element, known origins) BoundDisk {
	var b BoundDisk
	b.Unknown = readFields(e, []field{{"target", &b.Target}, {"serial", &b.Serial}, {"source", &b.Source}})
	had := map[string]bool{}
	for c := range e.ChildElementsSeq() {
		if c.NamespaceURI() != Namespace || had[c.Tag] {
			b.Unknown = append(b.Unknown, c.FullTag())
			continue
		}
		had[c.Tag] = true
		if c.Tag == "origin" {
			b.readOrigin(c, known)
			continue
		}
		fields := b.bind(c.Tag)
		if fields == nil {
			b.Unknown = append(b.Unknown, c.Tag)
		}
		for _, name := range readFields(c, fields) {
			b.Unknown = append(b.Unknown, c.Tag+"/"+name)
		}
	}
	return b
}

// readOrigin takes the elements of other namespaces as they are written.
func (b *BoundDisk) readOrigin(e *etree.Element, known origins) {
	for c := range e.ChildElementsSeq() {
		if c.NamespaceURI() != Namespace {
			o := known[c]
			b.Origin = append(b.Origin, bytes.Clone(o.src[o.start:o.end])...)
			continue
		}
		var fields []field
		if len(layers(b.OriginImage, b.OriginThin)) == 0 {
			fields = bindLayer(c.Tag, &b.OriginImage, &b.OriginThin)
		}
		if fields == nil {
			b.Unknown = append(b.Unknown, "origin/"+c.Tag)
		}
		for _, name := range readFields(c, fields) {
			b.Unknown = append(b.Unknown, "origin/"+c.Tag+"/"+name)
		}
	}
}

// readFields fills the fields from e's attributes and returns the names of the
// attributes that are none of them.
func readFields(e *etree.Element, fields []field) (unknown []string) {
next:
	for _, a := range e.Attr {
		if a.Space == "xmlns" || a.Space == "" && a.Key == "xmlns" {
			continue
		}
		for _, f := range fields {
			if a.Space == "" && a.Key == f.name {
				*f.at = a.Value
				continue next
			}
		}
		unknown = append(unknown, "@"+a.FullKey())
	}
	return unknown
}
