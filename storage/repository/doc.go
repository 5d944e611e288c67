// SPDX-License-Identifier: Apache-2.0

// Package repository keeps images in storage repositories: virtual disks, which
// guests write, and snapshots, which nobody writes any more.
//
// # Model
//
// An image is a document with an id: its kind, its size, its user data, and the
// volume that holds its content. A volume is a slab of data, raw or qcow2, which
// may lie on another one. Only images have names that callers know. A snapshot
// has one id in whatever repository it is, since it has one content; a virtual
// disk is in one repository only, and keeps its id when it is snapshotted: the
// snapshot takes over its volume, and the disk goes on in a new one.
//
// An image that was removed is weak: nobody sees it, and its document stays only
// as long as other images lie on its volume.
//
// Optimized, degraded and broken are derived from the documents each time
// somebody asks; see stateOf. Nothing stores them.
//
// # How an operation survives anything
//
// A verb checks what it is asked, writes one document and returns: the image with
// its plan. That write is the commit. The plan names its stages (plan.go). Each of
// them looks at what is there, does what is missing, and is left by one write of
// one document, so a worker on any host that has the repository connected walks the
// plan from its beginning, as often as it takes: what is done is passed. New data
// goes to a new volume, which the plan has named before it exists; the last stage
// lets the image point to it and drops the plan. Only a merge, a resize and the repair of
// what leaked change volumes in place, so that what was there reads as it did at every
// moment. There is no way back, only forward, or RemoveImage. A worker that is stopped (StopTask) leaves the plan
// for the next.
//
// Data that has to be overwritten when its image is removed says so in the documents of
// its volumes (stageerase.go): whoever deletes one erases it before. A volume that is being
// erased is not complete, so that nobody begins to use it.
//
// The operation's document, written before the image's and removed after its plan,
// is an index of open plans and holds the persisted status: who worked on it last,
// stage X/Y, percent and the last error.
//
// # Locks
//
// The repository's lock is held for moments, around reading documents,
// deciding, and writing one. The lock of an image's work is held as long as a worker
// walks its plan, that of a volume while its content is changed in place (merge).
// They are the format's: flock(2) on one host, something with a heartbeat where
// several have the storage. A worker that took a lock over from a host that fell
// silent, but may wake up, begins in a new volume, and one that lost its lock
// publishes nothing: a format asks right before a document changes (format.Fence).
// A write that the caller did not wait for changes nothing either; and while it is in
// the hands of the storage the lock is nobody else's.
//
// PrepareImage pins: a document says which host, in which boot, uses an image for
// whom. An image in use, or below one, is never merged, cleaned, resized or
// snapshotted. Pins of an earlier boot of the host that wrote them are void.
//
// # Check and fix
//
// CheckStorageRepository takes no lock, and reads each document once. What it finds
// are fixes: clean, optimize, merge, mend. Each carries the generations of what it
// is about; under the lock FixStorageRepository reads everything anew and refuses
// one that is stale.
//
// While an image's document cannot be read, nothing is cleaned or merged: what it needs is
// not known. It can be put aside (aside.go); what no other image names is kept then.
//
// Who frees room, or tells that there is none, does so where there is none: formats keep
// some for that (format.Documents, WriteReserved).
//
// # Formats
//
// Where documents, volumes and locks are is the format's business (package format):
// format/localfs is localfs-1.0, format/nfs nfs-3.4, format/clvm clvm-1.2. A new one is one package, and one line in each test suite
// and in New.
//
// # How it fails
//
// Errors are of the kinds of package failure, and sentinels (errors.go) say what
// they are about. Each repository has a deadline: one whose storage hangs is
// ErrUnreachable, and the others go on.
package repository
