// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// qemuNamespace is that of the elements by which libvirt lets a domain add to
// QEMU's command line.
const qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

// InlineQuorum has the domain's own QEMU open quorums. Each disk becomes its
// first replica, whose chain is given to its end, with an alias that libvirt
// keeps; <qemu:commandline> adds the quorum's node, and <qemu:override> points
// the disk's device at it. What an operator has in these two elements stays.
//
//	<disk type='file' device='disk'>
//	  <driver name='qemu' type='qcow2'/>
//	  <source file='/srv/1.qcow2'/>
//	  <backingStore/>
//	  <target dev='vda' bus='virtio'/>
//	  <alias name='ua-diskhook-vda'/>
//	</disk>
//	…
//	<qemu:commandline>
//	  <qemu:arg value='-blockdev'/>
//	  <qemu:arg value='{"driver":"quorum","node-name":"db","vote-threshold":2,"children":["libvirt-1-format",{…},{…}]}'/>
//	</qemu:commandline>
//	<qemu:override>
//	  <qemu:device alias='ua-diskhook-vda'>
//	    <qemu:frontend>
//	      <qemu:property name='drive' type='string' value='db'/>
//	    </qemu:frontend>
//	  </qemu:device>
//	</qemu:override>
//
// libvirt labels nothing that it only passes on, and gives QEMU no device nodes
// for it: so the replicas are files, or NBD servers without credentials.
//
// The first child is named by a number that libvirt counts over all disks of
// the domain. All quorums of a domain are therefore written together, and the
// rewrite runs again, if need be without Disks, after any other disk was
// changed: it then puts the numbers of those right that are there already. A
// wrong number does not go unnoticed: QEMU lets only one user write to a node.
// The numbers are those that a definition will get; the XML of a running domain
// names more images than its definition, so only CheckInline reads that.
type InlineQuorum struct {
	Disks []InlineDisk
	// RawNode is what RawNode says of the host; only a first replica that is
	// raw needs it.
	RawNode string
}

// InlineDisk is one quorum of a domain. Its second and further replicas get the
// node names that they ask for, else Name-2, Name-3 and so on; that of the
// first is libvirt's.
type InlineDisk struct {
	QuorumDisk
	Name string // of the quorum's block node
}

// Rewrite fails with ErrQuorum if a quorum cannot work, and with ErrUnsupported
// if it cannot be had this way.
func (q InlineQuorum) Rewrite(doc *Document) error {
	names := map[string]string{}
	for _, disk := range q.Disks {
		if err := disk.check(); err != nil {
			return err
		}
		for _, name := range disk.nodeNames()[1:] {
			names[name] = disk.Target
		}
		if other, twice := names[disk.Name]; twice {
			return fmt.Errorf("disk %s: %w: the node name %s is used by disk %s too", clip(disk.Target), ErrUnsupported, disk.Name, clip(other))
		}
		names[disk.Name] = disk.Target
		if nodes, found := doc.InlineNodes(disk.Target); found && nodes.Quorum != disk.Name {
			if err := (RemoveInline{disk.Target}).Rewrite(doc); err != nil {
				return err
			}
		}
		if err := disk.lower(doc); err != nil {
			return err
		}
	}
	numbers, unknown := doc.nodeNumbers()
	for _, disk := range q.Disks {
		first, err := q.firstNode(numbers, unknown, disk.Target, disk.Replicas[0].Chain[0].Format)
		if err != nil {
			return err
		}
		if err := disk.write(doc, first); err != nil {
			return err
		}
	}
	return q.renumber(doc, numbers, unknown)
}

func (q InlineQuorum) firstNode(numbers map[string]int, unknown error, target, format string) (string, error) {
	number, known := numbers[target]
	if !known {
		return "", unknown
	}
	node, err := formatNode(number, format, q.RawNode)
	if err != nil {
		return "", fmt.Errorf("disk %s: %w", clip(target), err)
	}
	return node, nil
}

// renumber puts the first children of all inline quorums right that are not
// among q's disks.
func (q InlineQuorum) renumber(doc *Document, numbers map[string]int, unknown error) error {
	drives, nodes := doc.drives(), doc.quorumNodes()
	for _, d := range doc.Disks() {
		node := drives[d.Alias]
		if len(nodes[node]) == 0 || slices.ContainsFunc(q.Disks, func(i InlineDisk) bool { return i.Target == d.Target }) {
			continue
		}
		was := nodes[node][0]
		if !strings.HasPrefix(was, "libvirt-") {
			continue // an operator's own
		}
		first, err := q.firstNode(numbers, unknown, d.Target, d.Driver.Type)
		if err != nil {
			return err
		}
		err = doc.editBlockdev(node, func(value string) string {
			return strings.Replace(value, `"`+was+`"`, `"`+first+`"`, 1)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// check finds what keeps a quorum from being opened by the domain's QEMU.
func (i InlineDisk) check() error {
	if err := i.Check(); err != nil {
		return err
	}
	for _, name := range append(i.nodeNames()[1:], i.Name) {
		if !isNodeName(name) {
			return i.unsupported("%q is no node name (a letter, then letters, digits and -._, less than 32)", clip(name))
		}
	}
	for n, r := range i.Replicas {
		for j, l := range r.Chain {
			l = l.normal()
			last := j == len(r.Chain)-1
			switch {
			case l.Type == "block":
				return i.unsupported("replica %d is the block device %s, which QEMU has no node for: only lower='export' takes it", n+1, clip(l.Source.Dev))
			case l.Source.HasAuth || l.Source.Auth != nil || or(l.Source.TLS, "no") != "no":
				return i.unsupported("replica %d needs credentials, which libvirt does not pass on: only lower='export' takes it", n+1)
			case l.Type == "network" && l.Source.Protocol != "nbd":
				return i.unsupported("replica %d is reached over %s: only lower='export' takes it", n+1, clip(l.Source.Protocol))
			case l.Format != "qcow2" && l.Format != "raw":
				return i.unsupported("replica %d has the format %s: raw and qcow2 are supported", n+1, clip(l.Format))
			case l.Format == "raw" && !last:
				return i.unsupported("replica %d: a raw image has nothing below it", n+1)
			case l.Format != "raw" && last && r.Open:
				return i.unsupported("replica %d: its chain has no end: name every image, and <backingStore/> below the last one", n+1)
			}
			if l.Type == "network" {
				if _, err := nbdServerOf(l.Source); err != nil {
					return i.unsupported("replica %d: %v", n+1, err)
				}
			}
		}
	}
	return nil
}

func (i InlineDisk) unsupported(format string, args ...any) error {
	return fmt.Errorf("disk %s: %w: %s", clip(i.Target), ErrUnsupported, fmt.Sprintf(format, args...))
}

// nodeNames are those of the replicas; the first is not known here.
func (i InlineDisk) nodeNames() []string {
	names := make([]string, len(i.Replicas))
	for n, r := range i.Replicas[1:] {
		names[n+1] = or(r.NodeName, fmt.Sprintf("%s-%d", i.Name, n+2))
	}
	return names
}

// lower makes the disk its first replica.
func (i InlineDisk) lower(doc *Document) error {
	return doc.editDisk(i.Target, func(ed *edit, disk *etree.Element) error {
		if err := lowerable(disk); err != nil {
			return err
		}
		d := readDisk(disk)
		switch _, err := cacheOf(d.Driver.Cache); {
		case err != nil:
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		case d.ReadOnly:
			return fmt.Errorf("%w: the disk is read-only", ErrUnsupported)
		case d.Driver.CopyOnRead == "on":
			return fmt.Errorf("%w: the disk has copy_on_read, which goes around the quorum", ErrUnsupported)
		}
		top, below := i.Replicas[0].Chain[0].normal(), i.Replicas[0].Chain[1:]
		ed.driver(disk, top.Format)
		ed.exchange(disk, top.Type, top.Source.element(), chainElement(below, true))
		if isUserAlias(d.Alias) {
			return nil
		}
		alias := child(disk, "alias")
		if alias == nil {
			alias = etree.NewElement("alias")
			ed.insertAfter(child(disk, "target"), alias)
		}
		alias.CreateAttr("name", ourAlias(i.Target))
		return nil
	})
}

// libvirt keeps an alias of a definition only with this prefix, and makes up
// the others itself.
func isUserAlias(alias string) bool { return strings.HasPrefix(alias, "ua-") }

func ourAlias(target string) string { return "ua-diskhook-" + target }

// write puts the quorum's node and the override into the domain.
func (i InlineDisk) write(doc *Document, first string) error {
	disk, _ := doc.Disk(i.Target)
	node := quorumNode{Driver: "quorum", NodeName: i.Name, Threshold: i.Threshold, ReadPattern: i.ReadPattern, Blkverify: i.Blkverify, Children: []any{first}}
	names := i.nodeNames()
	for n, r := range i.Replicas[1:] {
		child, err := imageNode(r.Chain, names[n+1], false, disk.Driver)
		if err != nil {
			return i.unsupported("replica %d: %v", n+2, err)
		}
		node.Children = append(node.Children, child)
	}
	value, err := marshal(node)
	if err != nil {
		return i.unsupported("%v", err)
	}
	if err := doc.setBlockdev(i.Name, value); err != nil {
		return err
	}
	return doc.setDrive(disk.Alias, i.Name)
}

// RemoveInline takes out what InlineQuorum added around a disk: the quorum's
// node, the override, and the alias. The disk stays its first replica until
// RestoreOrigin gives it back; then InlineQuorum has to renumber the others.
type RemoveInline struct{ Target string }

// Rewrite changes nothing where there is nothing.
func (r RemoveInline) Rewrite(doc *Document) error {
	if _, err := doc.findDisk(r.Target); err != nil {
		return err
	}
	disk, _ := doc.Disk(r.Target)
	nodes, found := doc.InlineNodes(r.Target)
	if !found {
		return nil
	}
	if err := doc.removeBlockdev(nodes.Quorum); err != nil {
		return err
	}
	if err := doc.removeDrive(disk.Alias); err != nil {
		return err
	}
	if disk.Alias != ourAlias(r.Target) {
		return nil
	}
	return doc.editDisk(r.Target, func(_ *edit, e *etree.Element) error {
		remove(child(e, "alias"))
		return nil
	})
}

// InlineNodes are the block nodes of an inline quorum.
type InlineNodes struct {
	Quorum   string
	Children []string // of the replicas, in their order; the first is libvirt's
}

// InlineNodes returns the nodes of a disk whose device an override points at a
// quorum of the command line.
func (d *Document) InlineNodes(target string) (InlineNodes, bool) {
	disk, ok := d.Disk(target)
	if !ok || disk.Alias == "" {
		return InlineNodes{}, false
	}
	node := d.drives()[disk.Alias]
	children, found := d.quorumNodes()[node]
	return InlineNodes{node, children}, found && node != ""
}

// CheckInline finds what keeps the inline quorum of a disk from being what its
// guest would use: without the override it would run on the first replica
// alone. In the XML of a start, where libvirt has numbered the images, the
// quorum's first child must be the disk's; before, the number is derived as far
// as the XML tells. The error is ErrQuorum.
func CheckInline(d *Document, target string) error {
	i, err := d.findDisk(target)
	if err != nil {
		return err
	}
	disk := readDisk(readTree(d.pieces[i].raw, d.pieces[i].in, nil))
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("disk %s: %w: %s", clip(target), ErrQuorum, fmt.Sprintf(format, args...))
	}
	nodes, found := d.InlineNodes(target)
	switch {
	case !found:
		return wrong("no <qemu:override> points it at a quorum of <qemu:commandline>, so the guest would use %s alone", clip(disk.Source.String()))
	case len(nodes.Children) == 0:
		return wrong("the quorum %s has no replicas", clip(nodes.Quorum))
	}
	number := disk.Source.Index
	if number == "" {
		numbers, _ := d.nodeNumbers()
		if n, known := numbers[target]; known {
			number = fmt.Sprint(n)
		}
	}
	if first := nodes.Children[0]; number != "" && first != "libvirt-"+number+"-"+RawNodeFormat && first != "libvirt-"+number+"-"+RawNodeStorage {
		return wrong("its quorum %s takes the node %s, but libvirt gives this disk the number %s", clip(nodes.Quorum), clip(first), clip(number))
	}
	return nil
}
