// SPDX-License-Identifier: Apache-2.0

package xmlrewrite

// ProduceQuorum makes a disk the quorum, as the element that QuorumDisk shows.
// Its driver, source and backing chain are replaced; target, serial, address,
// boot order, alias and all else stay. A disk that already is this quorum does
// not change.
//
// libvirt refuses the result: it is the form that ExportQuorum and InlineQuorum
// lower.
type ProduceQuorum struct{ QuorumDisk }

// ExportQuorum points a disk at a quorum that another process serves on a unix
// socket.
type ExportQuorum struct {
	Target string
	Socket string // absolute
	Name   string // of the export; not with VhostUser
	// VhostUser makes it a vhost-user-blk device: the domain must have
	// SharedMemory and the disk the bus virtio.
	VhostUser bool
	// Reconnect is for how many seconds QEMU tries to reach a server that went
	// away before it fails the guest's requests; 0 writes nothing.
	Reconnect int
}

// InlineQuorum has QEMU itself open the quorums of a domain. Each disk becomes
// its first replica, with a user alias; <qemu:commandline> adds the quorum node,
// and <qemu:override> points the disk's drive at it. What an operator has in
// these two elements stays.
//
// libvirt numbers its block nodes over all disks of a domain, so all quorums of
// a domain are written together, and written again after any other disk changed.
type InlineQuorum struct {
	Disks []InlineDisk
	// Layers says how many images the chain of a disk has, the top included,
	// where the XML does not: a chain without its end is in the headers alone.
	Layers map[string]int
	// RawNode is the suffix of the node that stands for a raw image.
	RawNode string
}

// InlineDisk is one quorum of a domain.
type InlineDisk struct {
	QuorumDisk
	Name string // of the quorum's block node: at most 31 bytes
}

// RemoveInline takes out what InlineQuorum added for a disk outside of it: its
// node, its override, and its alias. RestoreOrigin gives the disk itself back.
type RemoveInline struct{ Target string }

// QuorumPath is how a disk that a quorum was lowered to is recognised: the
// socket of an export, the path of the first replica of an inline one or of the
// quorum's own element. "" if it is none of these.
func (d *Disk) QuorumPath() string { return "" }

// SharedMemory tells whether other processes can map the guest's memory, as
// vhost-user needs it.
func SharedMemory(d *Document) bool { return false }

func (p ProduceQuorum) Rewrite(doc *Document) error { return ErrUnsupported }
func (x ExportQuorum) Rewrite(doc *Document) error  { return ErrUnsupported }
func (i InlineQuorum) Rewrite(doc *Document) error  { return ErrUnsupported }
func (r RemoveInline) Rewrite(doc *Document) error  { return ErrUnsupported }
