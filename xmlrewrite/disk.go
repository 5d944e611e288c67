// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import "github.com/beevik/etree"

// Disk is what a <disk> element says. It is a copy for reading; edits go
// through Document. Values are as written: an unknown type or format is
// reported, not refused.
type Disk struct {
	Target string // target/@dev, unique in a domain
	Bus    string
	Serial string
	Alias  string
	Device string // disk, cdrom, floppy, lun
	Type   string // of the source: file, block, network, …; libvirt's default is file
	Driver Driver

	ReadOnly  bool // <readonly/>, or a CD-ROM
	Shareable bool // other domains may write to it
	Transient bool // libvirt throws the guest's writes away
	Encrypted bool // the disk, or a layer below it
	Mirror    bool // a block copy is under way

	Source Source
	// Chain are the layers below the source, from the top, if the XML names
	// them. Terminated says that the chain ends with the empty element with
	// which libvirt is told that there is nothing below; if it does not, QEMU's
	// image headers decide.
	Chain      []Layer
	Terminated bool
}

// Driver is a disk's <driver>; "" is an attribute that is not there.
type Driver struct {
	Name, Type        string
	Cache, IO         string
	ErrorPolicy       string
	ReadErrorPolicy   string
	Discard           string
	DetectZeroes      string
	CopyOnRead        string
	IOThread, Queues  string
	HasMetadataCache  bool
	HasIOThreadQueues bool
}

// Disks returns every disk of the document, in its order.
func (d *Document) Disks() []*Disk {
	var disks []*Disk
	for _, p := range d.pieces {
		if p.kind == diskPiece {
			disks = append(disks, readDisk(readTree(p.raw, p.in, nil)))
		}
	}
	return disks
}

// Disk returns the disk with that target. If two share it, which libvirt
// refuses, there is none.
func (d *Document) Disk(target string) (*Disk, bool) {
	i, err := d.findDisk(target)
	if err != nil {
		return nil, false
	}
	return readDisk(readTree(d.pieces[i].raw, d.pieces[i].in, nil)), true
}

func readDisk(e *etree.Element) *Disk {
	driver, target := child(e, "driver"), child(e, "target")
	d := &Disk{
		Target: attr(target, "dev"),
		Bus:    attr(target, "bus"),
		Alias:  attr(child(e, "alias"), "name"),
		Device: or(attr(e, "device"), "disk"),
		Type:   or(attr(e, "type"), "file"),
		Driver: Driver{
			Name:              attr(driver, "name"),
			Type:              attr(driver, "type"),
			Cache:             attr(driver, "cache"),
			IO:                attr(driver, "io"),
			ErrorPolicy:       attr(driver, "error_policy"),
			ReadErrorPolicy:   attr(driver, "rerror_policy"),
			Discard:           attr(driver, "discard"),
			DetectZeroes:      attr(driver, "detect_zeroes"),
			CopyOnRead:        attr(driver, "copy_on_read"),
			IOThread:          attr(driver, "iothread"),
			Queues:            attr(driver, "queues"),
			HasMetadataCache:  child(driver, "metadata_cache") != nil,
			HasIOThreadQueues: child(driver, "iothreads") != nil,
		},
		Shareable: child(e, "shareable") != nil,
		Transient: child(e, "transient") != nil,
		Mirror:    child(e, "mirror") != nil,
	}
	if serial := child(e, "serial"); serial != nil {
		d.Serial = textOf(serial)
	}
	d.ReadOnly = child(e, "readonly") != nil || d.Device == "cdrom"
	d.Source = readSource(child(e, "source"), d.Type)
	d.Source.HasAuth = d.Source.HasAuth || child(e, "auth") != nil
	d.Chain, d.Terminated = readChain(e)
	d.Encrypted = child(e, "encryption") != nil || d.Source.HasEncryption
	for _, layer := range d.Chain {
		d.Encrypted = d.Encrypted || layer.Source.HasEncryption
	}
	return d
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
