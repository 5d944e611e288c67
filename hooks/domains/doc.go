// SPDX-License-Identifier: Apache-2.0

// Package domains changes the definitions of libvirt domains: it binds their
// disks (Apply), takes bindings back (Revert, Unbind), and gives a clone's
// disks bindings of their own (Rebind).
//
// libvirt is reached through the program diskhook-domain alone, which speaks
// JSON (protocol.go); this package is the only one that knows how. So nothing
// else of diskhook needs libvirt, and a host without it is told so when
// somebody asks for a domain, with failure.Precondition.
//
// # How a definition changes
//
// Look, refuse, define, look again, then fill:
//
//	facts, XML ─▶ Plan ─▶ define what the plan says ─▶ compare with what libvirt stored ─▶ copies
//
// A Plan has refused everything that must not be touched: a domain that runs,
// has saved memory, snapshots or checkpoints, belongs to VDSM, or shares a disk
// with somebody. libvirt has no compare-and-set; so the definition is read
// once more immediately before it is replaced, and if it is no longer what
// was planned on, nothing is done (failure.Temporary). Other verbs of diskhook
// are kept out by a lock of the domain's, from that look to the end of the work
// (lock.go); what somebody else does with virsh is not.
//
// What makes kinds of bindings differ here has a file for each, and a table: kinds.go.
//
// Metadata and receipts tell of each other (record.go): metadata that were
// taken out of a definition are written again from the receipts (forgotten.go).
//
// # How it fails
//
// Before the definition changed: nothing happened. After it: the domain names
// paths that only a fulfil makes, so it cannot start from older data, and the
// same verb run again goes on where this one ended.
//
// Nothing here is called by a hook: calling libvirt from a hook deadlocks.
package domains
