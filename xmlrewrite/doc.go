// SPDX-License-Identifier: Apache-2.0

// Package xmlrewrite changes the disks of a libvirt domain XML and leaves every
// other byte as it was.
//
// Definitions come from libvirt (single quotes, but double ones in <metadata>),
// from virt-install, from oVirt, or from an editor. A round trip through an XML
// library would change quotes, entities and empty elements, and a round trip
// through a model of the schema would lose what the model does not know,
// namespaces above all. So a Document is the text itself, cut at its disks. An
// edit builds a tree of one disk, and writes it back such that each node that
// did not change is copied from where it was read.
//
//	Parse            text → Document
//	Disks, Disk      what the disks say: source, driver, chain
//	Metadata, VDSM   what diskhook and oVirt say about them
//	Apply            runs Rewriters on a copy: LocalDisk, RestoreOrigin, SetMetadata, …
//	Quorum           disks of several replicas: read, checked (Check), produced
//	                 (ProduceQuorum), lowered (ExportQuorum, InlineQuorum)
//	EditDisk         what rewriters are made of
//	Bytes, Diff      Document → text, and what changed
//
// The input is hostile: sizes, depth and namespaces are bounded, document types
// and duplicate attributes refused, nothing outside is read. What libxml2 would
// not read is an error here. Elements are found by namespace, never by prefix.
//
// This package knows XML alone: it opens no file and asks no storage. A rewrite
// that cannot be right fails (ErrUnsupported) and changes nothing.
package xmlrewrite
