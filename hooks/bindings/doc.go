// SPDX-License-Identifier: Apache-2.0

// Package bindings joins a domain's disks to the storage that they are bound
// to. It is the one place where XML and storage meet.
//
// A Binding says: this disk is of that kind of storage. It can be written in
// the domain's metadata, in a custom property of oVirt, as a flag of the
// command line, or as a rule of the configuration. All of these are spellings
// of the same thing, and Resolve settles which one counts. Everything then
// runs in the same steps:
//
//	document ─▶ Domain ─▶ Resolve ─▶ observe ─▶ plan ─▶ execute ─▶ undo, if it failed
//
// A Kind does the last four for all disks of a domain that are bound to it. A
// new kind is one file here and one line in Kinds.
//
// # Who may be delayed
//
// Only a domain with a binding. Rules bind in rewrite and apply alone, never
// at a start, so a start depends on nothing that the domain does not say
// itself. The one exception is a receipt: a domain whose guest wrote into a
// local copy that its definition no longer names is refused, since it would
// see older data.
//
// # How it fails
//
// Before anything is done. Metadata of another domain (a clone), a disk whose
// source is no longer what was recorded, and spellings that contradict each
// other are refused with the command that is the way out.
package bindings
