// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"

	"github.com/beevik/etree"
)

// Here are <qemu:commandline> and <qemu:override>: which nodes they hold, and
// how one is set or removed among what an operator has there.

func qemuChildren(e *etree.Element, local string) []*etree.Element {
	var all []*etree.Element
	for c := range e.ChildElementsSeq() {
		if is(c, qemuNamespace, local) {
			all = append(all, c)
		}
	}
	return all
}

// findBlockdev returns the two arguments that add the quorum node of that name.
func findBlockdev(commandline *etree.Element, node string) (option, value *etree.Element) {
	args := qemuChildren(commandline, "arg")
	for i := 1; i < len(args); i++ {
		if attr(args[i-1], "value") != "-blockdev" {
			continue
		}
		if name, _, ok := readQuorumNode(attr(args[i], "value")); ok && name == node {
			return args[i-1], args[i]
		}
	}
	return nil, nil
}

// quorumNodes returns the children of every quorum node of the command line.
func (d *Document) quorumNodes() map[string][]string {
	nodes := map[string][]string{}
	i := d.findChild(qemuNamespace, "commandline")
	if i < 0 {
		return nodes
	}
	args := qemuChildren(readTree(d.pieces[i].raw, d.pieces[i].in, nil), "arg")
	for i := 1; i < len(args); i++ {
		if attr(args[i-1], "value") != "-blockdev" {
			continue
		}
		if name, children, ok := readQuorumNode(attr(args[i], "value")); ok && nodes[name] == nil {
			nodes[name] = append([]string{}, children...)
		}
	}
	return nodes
}

// drives returns the node that each device is pointed at, by its alias.
func (d *Document) drives() map[string]string {
	drives := map[string]string{}
	i := d.findChild(qemuNamespace, "override")
	if i < 0 {
		return drives
	}
	for _, device := range qemuChildren(readTree(d.pieces[i].raw, d.pieces[i].in, nil), "device") {
		alias := attr(device, "alias")
		if _, again := drives[alias]; again {
			continue
		}
		_, property := findProperty(device)
		drives[alias] = attr(property, "value")
	}
	return drives
}

// editBlockdev changes the value of a node that is there.
func (d *Document) editBlockdev(node string, change func(string) string) error {
	return d.editChild("qemu", qemuNamespace, "commandline", func(_ *edit, e *etree.Element) error {
		if _, arg := findBlockdev(e, node); arg != nil {
			arg.CreateAttr("value", change(attr(arg, "value")))
		}
		return nil
	})
}

func (d *Document) setBlockdev(node, value string) error {
	return d.editChild("qemu", qemuNamespace, "commandline", func(ed *edit, e *etree.Element) error {
		if _, arg := findBlockdev(e, node); arg != nil {
			arg.CreateAttr("value", value)
			return nil
		}
		for _, v := range []string{"-blockdev", value} {
			ed.append(e, qemuElement(e, "arg", "value", v), d.indent(1), d.indent(2))
		}
		return nil
	})
}

func (d *Document) removeBlockdev(node string) error {
	return d.editAway("commandline", func(e *etree.Element) {
		option, value := findBlockdev(e, node)
		remove(value)
		remove(option)
	})
}

func findDevice(override *etree.Element, alias string) *etree.Element {
	for _, device := range qemuChildren(override, "device") {
		if attr(device, "alias") == alias {
			return device
		}
	}
	return nil
}

// findProperty returns the drive that an override sets for a device, and what
// it is in; each may be nil.
func findProperty(device *etree.Element) (frontend, property *etree.Element) {
	if device == nil {
		return nil, nil
	}
	all := qemuChildren(device, "frontend")
	if len(all) == 0 {
		return nil, nil
	}
	for _, property := range qemuChildren(all[0], "property") {
		if attr(property, "name") == "drive" {
			return all[0], property
		}
	}
	return all[0], nil
}

func (d *Document) setDrive(alias, node string) error {
	if was := d.drives()[alias]; was != "" && was != node {
		return fmt.Errorf("%w: <qemu:override> points %s at %s already", ErrUnsupported, clip(alias), clip(was))
	}
	return d.editChild("qemu", qemuNamespace, "override", func(ed *edit, e *etree.Element) error {
		device := findDevice(e, alias)
		frontend, property := findProperty(device)
		if property != nil {
			return nil
		}
		property = qemuElement(e, "property", "name", "drive", "type", "string", "value", node)
		if frontend != nil {
			ed.append(frontend, property, d.indent(3), d.indent(4))
			return nil
		}
		frontend = qemuElement(e, "frontend")
		frontend.AddChild(property)
		if device != nil {
			ed.append(device, frontend, d.indent(2), d.indent(3))
			return nil
		}
		device = qemuElement(e, "device", "alias", alias)
		device.AddChild(frontend)
		ed.append(e, device, d.indent(1), d.indent(2))
		return nil
	})
}

func (d *Document) removeDrive(alias string) error {
	return d.editAway("override", func(e *etree.Element) {
		device := findDevice(e, alias)
		frontend, property := findProperty(device)
		remove(property)
		for _, c := range []*etree.Element{frontend, device} {
			if c != nil && len(c.Child) == 0 {
				remove(c)
			}
		}
	})
}

// editAway changes a child of <domain> and drops it if nothing is left in it.
func (d *Document) editAway(local string, change func(*etree.Element)) error {
	i := d.findChild(qemuNamespace, local)
	if i < 0 {
		return nil
	}
	empty := false
	err := d.edit(i, func(_ *edit, e *etree.Element) error {
		change(e)
		empty = len(e.Child) == 0
		return nil
	})
	if err == nil && empty {
		d.removePiece(i)
	}
	return err
}

// qemuElement makes an element of the namespace of like; the strings are names
// and values of its attributes.
func qemuElement(like *etree.Element, local string, attrs ...string) *etree.Element {
	e := etree.NewElement(local)
	e.Space = like.Space
	for i := 0; i+1 < len(attrs); i += 2 {
		e.CreateAttr(attrs[i], attrs[i+1])
	}
	return e
}

// append makes e the last child element of parent; line and inner stand before
// a line of the parent, and before one of its children.
func (ed *edit) append(parent, e *etree.Element, line, inner string) {
	unit := inner[min(len(line), len(inner)):]
	if all := parent.ChildElements(); len(all) > 0 {
		last := all[len(all)-1]
		if line, u := ed.lines(parent, last); line != "" {
			inner, unit = line, u
		}
		ed.layOut(e, inner, unit)
		ed.insertAfter(last, e)
		return
	}
	trim(parent)
	ed.layOut(e, inner, unit)
	if inner != "" {
		parent.AddChild(ed.space(inner))
	}
	parent.AddChild(e)
	if line != "" {
		parent.AddChild(ed.space(line))
	}
}
