// SPDX-License-Identifier: Apache-2.0

package bindings

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"diskhook/storage/failure"
	"diskhook/storage/quorum"
	"diskhook/xmlrewrite"
)

// elementOf is a set as the element that was proposed to libvirt.
func elementOf(set quorum.Set, target string) xmlrewrite.QuorumDisk {
	q := xmlrewrite.QuorumDisk{Target: target, Threshold: set.Threshold}
	if set.ReadPattern == quorum.FIFO {
		q.ReadPattern = quorum.FIFO
	}
	for _, r := range set.Replicas {
		replica := xmlrewrite.QuorumReplica{NodeName: target + "-" + r.ID}
		for _, l := range r.Chain {
			replica.Chain = append(replica.Chain, layerOf(l))
		}
		q.Replicas = append(q.Replicas, replica)
	}
	return q
}

// layerOf is an image in the words of the XML, which has no type of its own
// for NBD.
func layerOf(l quorum.Layer) xmlrewrite.Layer {
	source := xmlrewrite.Source{Type: l.Type}
	switch l.Type {
	case quorum.File:
		source.File = l.Path
	case quorum.Block:
		source.Dev = l.Path
	case quorum.NBD:
		server := xmlrewrite.Host{Name: l.Host, Port: strconv.Itoa(l.Port)}
		if l.Socket != "" {
			server = xmlrewrite.Host{Transport: "unix", Socket: l.Socket}
		}
		source = xmlrewrite.Source{Type: "network", Protocol: "nbd", Name: l.Export, Hosts: []xmlrewrite.Host{server}}
	}
	return xmlrewrite.Layer{Type: source.Type, Format: l.Format, Source: source}
}

// matches refuses an element that names other replicas than the set has, or
// votes by another rule: one of the two is not what the operator means.
func (replicated) matches(d Disk, set quorum.Set) error {
	if d.ElementErr != nil {
		return failure.Wrap(failure.Usage, d.ElementErr)
	}
	if d.Element == nil {
		return nil
	}
	want := elementOf(set, d.Target)
	differ := func(what string, is, has any) error {
		err := failure.New(failure.Conflict, "its element has %s %v, replica set %s has %v", what, is, set.Name, has)
		return failure.Hint(err, "make the element say what the set has (`diskhook quorum status %s`), or build a set of its own with `diskhook quorum build`", set.Name)
	}
	switch {
	case d.Element.Threshold != want.Threshold:
		return differ("threshold", d.Element.Threshold, want.Threshold)
	case d.Element.ReadPattern != want.ReadPattern:
		return differ("read pattern", d.Element.ReadPattern, want.ReadPattern)
	case len(d.Element.Replicas) != len(want.Replicas):
		return differ("a number of replicas of", len(d.Element.Replicas), len(want.Replicas))
	}
	if d.Element.Blkverify {
		err := failure.New(failure.Precondition, "its element has blkverify, which a replica set has not: one that differs is told and loses its vote, and QEMU goes on")
		return failure.Hint(err, "take blkverify out of the element")
	}
	for i, r := range d.Element.Replicas {
		chain := want.Replicas[i].Chain
		if r.Open { // it leaves the rest to the header of its last image
			chain = chain[:min(len(r.Chain), len(chain))]
		}
		if is, has := layersOf(r.Chain), layersOf(chain); is != has {
			return differ("the replica "+strconv.Itoa(i+1), is, has)
		}
	}
	return nil
}

// layersOf tells a chain, top first, with the formats.
func layersOf(chain []xmlrewrite.Layer) string {
	var words []string
	for _, l := range chain {
		words = append(words, l.Source.String()+" ("+l.Format+")")
	}
	return strings.Join(words, " over ")
}

// FromElements binds disks whose element names replicas to the sets that have
// these replicas, but for those that are bound otherwise: what is written, or
// recorded, says which set. An element of no set is refused: nobody would keep
// its replicas apart from those that are out of date.
func FromElements(d Domain, sets []quorum.Set, written []Binding) ([]Binding, error) {
	var all []Binding
	for _, disk := range d.Disks {
		_, recorded := d.Metadata.Disk(disk.Target)
		named := slices.ContainsFunc(written, func(b Binding) bool { return b.Named() && disk.is(b.Select) })
		if disk.Type != "quorum" || recorded || named {
			continue
		}
		if disk.ElementErr != nil {
			return nil, failure.Wrap(failure.Usage, disk.ElementErr)
		}
		b := Binding{Select: disk.Target, Kind: replicated{}.Name(), From: Element}
		for _, set := range sets {
			if (replicated{}).matches(disk, set) == nil {
				b.Value = set.Name
			}
		}
		if b.Value == "" {
			return nil, undefined(d, disk)
		}
		all = append(all, b)
	}
	return all, nil
}

func undefined(d Domain, disk Disk) error {
	replicas := ""
	for i, r := range disk.Element.Replicas {
		if i > 0 {
			replicas += ","
		}
		replicas += r.Chain[0].Source.String()
	}
	err := failure.New(failure.NotFound, "%s: disk %s: no replica set of this host has the replicas of its element", d, disk.Target)
	return failure.Hint(err, "define it with `diskhook quorum build --adopt --replicas %s --threshold %d NAME`, then run this again", failure.OneLine(replicas), disk.Element.Threshold)
}

// inlined is the change of a disk that is lowered to arguments for QEMU. These
// name block nodes which libvirt numbers over all disks of a domain, so that
// together makes one change of all.
type inlined struct{ xmlrewrite.InlineDisk }

// Rewrite is for together to do.
func (inlined) Rewrite(*xmlrewrite.Document) error { return xmlrewrite.ErrUnsupported }

func inlineNode(target string) string { return "quorum-" + target }

// together joins the changes of disks that are lowered inline, and puts them
// behind all others: what other disks are decides how nodes are called, also
// those of quorums that are there already.
func (h *Host) together(changes []xmlrewrite.Rewriter) []xmlrewrite.Rewriter {
	var all []xmlrewrite.Rewriter
	inline := xmlrewrite.InlineQuorum{RawNode: xmlrewrite.RawNode(int(h.Libvirt), int(h.QEMU))}
	for _, c := range changes {
		if disk, is := c.(inlined); is {
			inline.Disks = append(inline.Disks, disk.InlineDisk)
			continue
		}
		all = append(all, c)
	}
	return append(all, inline)
}

// Numbered is the definition with the nodes of inline quorums called as libvirt
// will call them, after any of its disks was changed. Where there are no inline
// quorums it is doc.
func (h *Host) Numbered(doc *xmlrewrite.Document) (*xmlrewrite.Document, error) {
	after, err := xmlrewrite.Apply(doc, h.together(nil)...)
	return after, failure.Wrap(failure.Precondition, err)
}

// Inlined says that a disk of the domain is a quorum in its own QEMU.
func Inlined(doc *xmlrewrite.Document) bool {
	return slices.ContainsFunc(doc.Disks(), func(d *xmlrewrite.Disk) bool {
		_, found := doc.InlineNodes(d.Target)
		return found
	})
}

// Overridden refuses to start a domain whose inline quorums are not what its
// guest would use. Without its override, which an edit or another program may
// have dropped, it would run on the first replica alone, and that one would
// be the only one to have what it writes. Where a replica was replaced since the
// definition was written, QEMU would still vote with the old one; and where
// libvirt took a snapshot, which is of the first replica alone, with an image that
// the set does not have.
func (h *Host) Overridden(doc *xmlrewrite.Document, d Domain, bound []Bound) error {
	for _, b := range bound {
		if b.Binding.Kind != (replicated{}).Name() || b.lower() != lowerInline {
			continue
		}
		err := xmlrewrite.CheckInline(doc, b.Disk.Target)
		if err == nil {
			err = h.sameReplicas(doc, b)
		}
		if err != nil {
			err = failure.New(failure.Conflict, "%s: %w", d, err)
			return failure.Hint(err, "write it again with `diskhook domain apply %s`", d.NameArg())
		}
	}
	return nil
}

// sameReplicas holds libvirt's disk, which is the first replica, and the nodes of
// the others, whose ids are in their names, against the set.
func (h *Host) sameReplicas(doc *xmlrewrite.Document, b Bound) error {
	set, err := h.Quorum.Definition(b.Binding.Value)
	if err != nil {
		return nil //nolint:nilerr // the fulfil comes to it
	}
	if first := set.Replicas[0].Top().Path; b.Disk.At() != first {
		return fmt.Errorf("disk %s: its QEMU would open %s as the first replica, and replica set %s has %s", b.Disk.Target, describe(b.Disk), set.Name, first)
	}
	nodes, _ := doc.InlineNodes(b.Disk.Target)
	var has []string
	for _, r := range elementOf(set, b.Disk.Target).Replicas {
		has = append(has, r.NodeName)
	}
	if slices.Equal(nodes.Children[1:], has[1:]) {
		return nil
	}
	return fmt.Errorf("disk %s: its QEMU would open %s beside the first replica, and replica set %s has %s", b.Disk.Target,
		failure.OneLine(strings.Join(nodes.Children[1:], ", ")), set.Name, strings.Join(has[1:], ", "))
}
