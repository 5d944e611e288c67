// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"reflect"
	"strconv"

	"github.com/beevik/etree"
)

// ProduceQuorum makes a disk the quorum, as the element that QuorumDisk shows.
// Its driver's type, source and backing chain are replaced; target, serial,
// address, boot order, alias and all else stay. A disk that already is this
// quorum, however it is spelled, does not change.
//
// libvirt refuses the result: it is the form that ExportQuorum and InlineQuorum
// start from.
type ProduceQuorum struct{ QuorumDisk }

// Rewrite fails with ErrQuorum if the quorum cannot work, and with
// ErrUnsupported if the disk cannot be one.
func (p ProduceQuorum) Rewrite(doc *Document) error {
	if err := p.Check(); err != nil {
		return err
	}
	return doc.editDisk(p.Target, func(ed *edit, disk *etree.Element) error {
		if isQuorum(disk) {
			if is, err := readQuorum(disk); err == nil && is.same(&p.QuorumDisk) {
				return nil
			}
		}
		if err := lowerable(disk); err != nil {
			return err
		}
		threshold := etree.NewElement("threshold")
		threshold.CreateAttr("value", strconv.Itoa(p.Threshold))
		parts := []*etree.Element{threshold}
		for _, r := range p.Replicas {
			parts = append(parts, r.element())
		}
		driver := ed.driver(disk, "quorum")
		if p.ReadPattern != "" {
			driver.CreateAttr("read_pattern", p.ReadPattern)
		}
		if p.Blkverify {
			driver.CreateAttr("blkverify", "on")
		}
		ed.exchange(disk, "quorum", parts...)
		return nil
	})
}

// same tells whether two quorums say the same, however they came about.
func (q *QuorumDisk) same(other *QuorumDisk) bool {
	return reflect.DeepEqual(q.normal(), other.normal())
}

// normal is the quorum without what only a running domain shows, and with the
// type of each source in both its places.
func (q *QuorumDisk) normal() QuorumDisk {
	n := *q
	n.Replicas = nil
	for _, r := range q.Replicas {
		r.Chain = append([]Layer(nil), r.Chain...)
		for i, l := range r.Chain {
			r.Chain[i] = l.normal()
		}
		n.Replicas = append(n.Replicas, r)
	}
	return n
}

func (l Layer) normal() Layer {
	l.Type = or(l.Type, l.Source.Type)
	l.Source.Type = l.Type
	l.Index, l.Source.Index = "", ""
	return l
}

// lowerable finds what keeps a disk from being a quorum.
func lowerable(e *etree.Element) error {
	for _, name := range []string{"driver", "source", "target", "alias"} {
		if len(children(e, name)) > 1 {
			return fmt.Errorf("%w: more than one <%s>", ErrUnsupported, name)
		}
	}
	d := readDisk(e)
	for _, no := range []struct {
		found bool
		what  string
	}{
		{d.Device != "disk", "a " + clip(d.Device) + " is no disk that replicas can stand for"},
		{d.Mirror, "a block copy of the disk is under way"},
		{d.Encrypted, "the disk is encrypted"},
		{d.Shareable, "the disk is shared with other domains, and each would write to the replicas for itself"},
		{d.Transient, "the disk is transient"},
	} {
		if no.found {
			return fmt.Errorf("%w: %s", ErrUnsupported, no.what)
		}
	}
	return nil
}

// driver gives the disk's driver that type, and takes from it what belonged to
// the image or to the quorum alone. A missing driver becomes the first element.
func (ed *edit) driver(disk *etree.Element, format string) *etree.Element {
	driver := child(disk, "driver")
	if driver == nil {
		driver = etree.NewElement("driver")
		driver.CreateAttr("name", "qemu")
		ed.insertFirst(disk, driver)
	}
	driver.CreateAttr("type", format)
	for _, key := range quorumAttrs {
		driver.RemoveAttr(key)
		disk.RemoveAttr(key)
	}
	if format != "qcow2" { // libvirt refuses these with any other format
		driver.RemoveAttr("discard_no_unref")
		remove(child(driver, "metadata_cache"))
	}
	return driver
}

// exchange gives the disk another type, and puts parts, one at least, in the
// place of all that said where its data is, or behind its driver. Parts that are
// there already stay.
func (ed *edit) exchange(disk *etree.Element, kind string, parts ...*etree.Element) {
	var old []*etree.Element
	for c := range disk.ChildElementsSeq() {
		for _, name := range originParts[1:] {
			if is(c, "", name) {
				old = append(old, c)
			}
		}
	}
	disk.CreateAttr("type", kind)
	if sameElements(old, parts) {
		return
	}
	before := child(disk, "driver")
	line, unit := ed.lines(disk, before)
	for i, part := range parts {
		ed.layOut(part, line, unit)
		if i == 0 && len(old) > 0 {
			replace(old[0], part)
			old = old[1:]
		} else {
			ed.insertAfter(before, part)
		}
		before = part
	}
	for _, gone := range old {
		remove(gone)
	}
}

// sameElements compares elements by what libvirt reads of them. What it adds in
// a running domain does not count: numbers, and that there is no TLS.
func sameElements(a, b []*etree.Element) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Tag != b[i].Tag || len(b[i].Attr) != len(significant(a[i])) || !sameElements(a[i].ChildElements(), b[i].ChildElements()) {
			return false
		}
		for _, at := range b[i].Attr {
			if !hasAttr(a[i], at.Key) || attr(a[i], at.Key) != at.Value {
				return false
			}
		}
	}
	return true
}

func significant(e *etree.Element) (attrs []etree.Attr) {
	for _, a := range e.Attr {
		if a.FullKey() != "index" && (a.FullKey() != "tls" || a.Value != "no") {
			attrs = append(attrs, a)
		}
	}
	return attrs
}

// element writes the replica as a <backingStore>, with all that lies below.
func (r QuorumReplica) element() *etree.Element {
	top := chainElement(r.Chain, !r.Open)
	if r.NodeName != "" {
		top.CreateAttr("nodename", r.NodeName)
	}
	return top
}

// chainElement nests the layers, and ends them with the element that says that
// nothing is below.
func chainElement(layers []Layer, ends bool) *etree.Element {
	var below *etree.Element
	if ends {
		below = etree.NewElement("backingStore")
	}
	for i := len(layers) - 1; i >= 0; i-- {
		l := layers[i].normal()
		e := etree.NewElement("backingStore")
		e.CreateAttr("type", l.Type)
		e.CreateElement("format").CreateAttr("type", l.Format)
		e.AddChild(l.Source.element())
		if below != nil {
			e.AddChild(below)
		}
		below = e
	}
	return below
}

// element writes a source of type file, block or network, in the order of
// libvirt's storagecommon.rng.
func (s Source) element() *etree.Element {
	e := etree.NewElement("source")
	set := func(e *etree.Element, key, value string) *etree.Element {
		if value != "" {
			e.CreateAttr(key, value)
		}
		return e
	}
	switch s.Type {
	case "file":
		set(e, "file", s.File)
	case "block":
		set(e, "dev", s.Dev)
	}
	set(e, "startupPolicy", s.StartupPolicy)
	if s.Type != "network" {
		return e
	}
	set(set(set(set(e, "protocol", s.Protocol), "name", s.Name), "query", s.Query), "tls", s.TLS)
	for _, h := range s.Hosts {
		set(set(set(set(e.CreateElement("host"), "name", h.Name), "port", h.Port), "transport", h.Transport), "socket", h.Socket)
	}
	if s.Snapshot != "" {
		e.CreateElement("snapshot").CreateAttr("name", s.Snapshot)
	}
	if s.Config != "" {
		e.CreateElement("config").CreateAttr("file", s.Config)
	}
	if s.Auth != nil {
		auth := set(e.CreateElement("auth"), "username", s.Auth.Username)
		set(set(set(auth.CreateElement("secret"), "type", s.Auth.Type), "uuid", s.Auth.UUID), "usage", s.Auth.Usage)
	}
	if s.Initiator != "" {
		e.CreateElement("initiator").CreateElement("iqn").CreateAttr("name", s.Initiator)
	}
	return e
}
