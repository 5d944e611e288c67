// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/beevik/etree"
)

// ExportQuorum points a disk at a quorum that another process serves on a unix
// socket: as a network disk over NBD, or as a vhost-user device.
//
//	<disk type='network' device='disk'>
//	  <driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>
//	  <source protocol='nbd' name='db'>
//	    <host transport='unix' socket='/run/…/nbd.sock'/>
//	    <reconnect delay='10'/>
//	  </source>
//
//	<disk type='vhostuser' device='disk'>
//	  <driver name='qemu' type='raw' queues='1'/>
//	  <source type='unix' path='/run/…/vhost.sock'>
//	    <reconnect enabled='yes' timeout='1'/>
//	  </source>
//
// The guest is stopped at an I/O error, unless the disk says what becomes of
// it: a server that comes back finds no error in the guest. A vhost-user device
// has neither error policies nor caches; there QEMU waits for its server.
type ExportQuorum struct {
	Target string
	Socket string // absolute
	Name   string // of the export over NBD
	// VhostUser makes it a vhost-user-blk device. The domain needs
	// SharedMemory, the disk the bus virtio, and libvirt allows it next to
	// nothing else: no serial above all.
	VhostUser bool
	// Queues is how many the vhost-user server has; 0 means 1. QEMU does not
	// start when the disk wants more, and it wants one for each vCPU unless it
	// is told: so the disk always says how many.
	Queues int
	// Reconnect in seconds; 0 writes nothing. Over NBD: for how long QEMU holds
	// requests back while it looks for a server that went away, before they
	// fail. Only libvirt from ReconnectSince on has that element: an older one
	// refuses it when it validates (diskSourceNetworkProtocolNBD in 9.0's
	// domaincommon.rng), and else drops it in silence. vhost-user: after how
	// long QEMU tries again (libvirt 7.1).
	Reconnect int
}

// ReconnectSince is the libvirt whose NBD disks have <reconnect>: 9.2.0.
const ReconnectSince = 9_002_000

// Rewrite fails with ErrUnsupported if the disk cannot be reached so.
func (x ExportQuorum) Rewrite(doc *Document) error {
	shared := SharedMemory(doc)
	return doc.editDisk(x.Target, func(ed *edit, disk *etree.Element) error {
		if !filepath.IsAbs(x.Socket) || filepath.Clean(x.Socket) != x.Socket {
			return fmt.Errorf("%w: %q is no clean absolute path", ErrUnsupported, clip(x.Socket))
		}
		if err := lowerable(disk); err != nil {
			return err
		}
		if x.VhostUser {
			if err := vhostUserPossible(disk, shared); err != nil {
				return err
			}
			driver := ed.driver(disk, "raw")
			for _, key := range vhostUserDrops {
				driver.RemoveAttr(key)
			}
			remove(child(driver, "iothreads"))
			has := max(x.Queues, 1)
			if wants, err := strconv.Atoi(attr(driver, "queues")); err != nil || wants < 1 || wants > has {
				driver.CreateAttr("queues", strconv.Itoa(has))
			}
			ed.exchange(disk, "vhostuser", x.vhostUserSource())
			return nil
		}
		driver := ed.driver(disk, "raw")
		driver.RemoveAttr("io")           // of files and block devices
		driver.RemoveAttr("copy_on_read") // nothing is below
		if !hasAttr(driver, "error_policy") && !hasAttr(driver, "rerror_policy") {
			driver.CreateAttr("error_policy", "stop")
			driver.CreateAttr("rerror_policy", "stop")
		}
		ed.exchange(disk, "network", x.nbdSource())
		return nil
	})
}

func (x ExportQuorum) nbdSource() *etree.Element {
	e := Source{Type: "network", Protocol: "nbd", Name: x.Name, Hosts: []Host{{Transport: "unix", Socket: x.Socket}}}.element()
	if x.Reconnect > 0 {
		e.CreateElement("reconnect").CreateAttr("delay", strconv.Itoa(x.Reconnect))
	}
	return e
}

func (x ExportQuorum) vhostUserSource() *etree.Element {
	e := etree.NewElement("source")
	e.CreateAttr("type", "unix")
	e.CreateAttr("path", x.Socket)
	if x.Reconnect > 0 {
		reconnect := e.CreateElement("reconnect")
		reconnect.CreateAttr("enabled", "yes")
		reconnect.CreateAttr("timeout", strconv.Itoa(x.Reconnect))
	}
	return e
}

// What libvirt refuses beside a vhost-user disk (virDomainDiskVhostUserValidate).
// How an image is opened means nothing there and is left out; what the guest
// would miss is refused.
var (
	vhostUserDrops = []string{"cache", "error_policy", "rerror_policy", "io", "ioeventfd", "copy_on_read",
		"discard", "iothread", "detect_zeroes"}
	vhostUserRefuses = []string{"serial", "wwn", "vendor", "product", "geometry", "blockio", "iotune", "throttlefilters", "readonly"}
)

func vhostUserPossible(disk *etree.Element, shared bool) error {
	if !shared {
		return fmt.Errorf("%w: vhost-user needs memory that is shared: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>", ErrUnsupported)
	}
	if bus := attr(child(disk, "target"), "bus"); bus != "virtio" {
		return fmt.Errorf("%w: vhost-user has the bus virtio, not %q", ErrUnsupported, clip(bus))
	}
	if s := attr(disk, "snapshot"); s != "" && s != "no" {
		return fmt.Errorf("%w: vhost-user has no snapshots, and the disk asks for %s ones", ErrUnsupported, clip(s))
	}
	for _, name := range vhostUserRefuses {
		if child(disk, name) != nil {
			return fmt.Errorf("%w: vhost-user has no <%s>, which the disk has", ErrUnsupported, name)
		}
	}
	return nil
}

// SharedMemory tells whether other processes can map all of the guest's memory,
// as vhost-user needs it: <memoryBacking> says so, unless a NUMA cell says
// otherwise, or every cell does.
func SharedMemory(d *Document) bool {
	access := ""
	for _, backing := range d.Children("", "memoryBacking") {
		access = attr(child(backing, "access"), "mode")
	}
	for _, cpu := range d.Children("", "cpu") {
		numa := child(cpu, "numa")
		if numa == nil {
			continue
		}
		cells := children(numa, "cell")
		for _, cell := range cells {
			if or(attr(cell, "memAccess"), access) != "shared" {
				return false
			}
		}
		return len(cells) > 0 || access == "shared"
	}
	return access == "shared"
}

// QuorumPath is how a disk that a quorum was lowered to is recognised: the
// socket of an export, the path of the first replica of an inline one or of the
// quorum's own element. "" if the disk has neither.
func (d *Disk) QuorumPath() string {
	switch {
	case d.Type == "quorum" && len(d.Chain) > 0:
		return d.Chain[0].Source.Path()
	case d.Type == "network" && d.Source.Protocol == "nbd" && len(d.Source.Hosts) == 1:
		return d.Source.Hosts[0].Socket
	case d.Type == "vhostuser":
		return d.Source.Socket
	}
	return d.Source.Path()
}
