// SPDX-License-Identifier: Apache-2.0

// Package member is a host's side of a thin cluster: its pool, the volumes that are
// attached to it, and the blocks that it asks for and gives back.
//
// A verb is a session: it takes the cluster's lock on this host, reads the host's
// header and the map, puts right what a verb before it left undone, and then does
// its own steps. The map is changed by the master alone, on a request (package
// request), which the host's header keeps until there is an answer. Everything else
// follows from header and map: which window holds the metadata that count, which
// volumes have a device. So there is no log of steps to be replayed. Whoever comes
// after a crash compares and goes on:
//
//	the pool is not on the window that the header names   converge: make it, move every device to it, resume
//	a device is suspended, or has a table that was loaded  converge
//	a request is in the header                             it is asked again under its sequence
//	a volume is attaching and in the metadata              the master is told; else attach and detach go on, each its way
//	a volume is detaching                                  it gets no device; its mapping is stored and the master told
//	a balloon whose blocks are still this host's           the next use of blocks deletes it
//
// The kernel takes no mapping from outside, so a volume that comes is put into new
// metadata on the idle window, to which the pool is handed over (handOver). Blocks
// that were granted are released from disk 0 by a discard, blocks that are given
// back are taken from the pool by a balloon, and a volume that goes is read from a
// metadata snapshot: these three hold no guest back.
//
// How it fails: a master that does not answer is a failure.Temporary, after which
// the request stands; verbs that need the master then fail in the same way, while
// guests, Start and Use go on. Metadata that would let this host write what is not
// its own are refused, as is a pool that is read-only.
package member
