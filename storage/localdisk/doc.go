// SPDX-License-Identifier: Apache-2.0

// Package localdisk runs a domain's disk on a fast local copy of its shared
// source, and never lets the domain see older data than it wrote.
//
// # What a copy is
//
// A copy is a logical volume (backends lvm, lvmthin), a raw file (dir) or a volume
// of this host in a thin cluster (thin). It is absent, updating or ready:
//
//	absent ──create──▶ updating ──copy, zero tail, flush──▶ ready
//	   ▲                  │
//	   └──────remove──────┘
//
// Updating is the tag UPDATING on the volume, or in the label that a host keeps of
// the cluster's, or the suffix .partial of the file. It goes in one step, after the data has reached the disk and after the
// receipt has. So whatever is not updating is complete.
//
// # What a receipt is
//
// The receipt, /var/lib/diskhook/receipts/DOMAIN/KEY.json, says which copy the
// disk must run on (by the UUID of volume or file). From the moment it says
// used, the guest's writes may live in that copy and nowhere else: then a copy
// that is missing, updating or another one is a veto, never a reason to copy
// again. A receipt that says discard is the intent of a verb that gave the
// copy up; the next call finishes it.
//
// # What an unused copy is worth
//
// A complete copy that no guest has used is good as long as its source is what
// it was made from. Files tell that by their fingerprints. A block device does
// not, so a copy of one is good only if it was made for the binding that is
// there now: who binds a disk makes it again, and gives the old one up before
// the definition names it; see stale.go.
//
// # Where copies are
//
// A copy stays where it was made, whatever is configured since. Its receipt says
// where; of what has none a note of each place does, which is there before
// anything else is; see homes.go.
//
// # What an overlay is
//
// It lies on its source until it is settled, and starts only while that is what
// it was, or an operator has said that it is; see overlay.go and accept.go.
//
// # What a template is
//
// Disks that were made from one template have the lowest image of their chains
// in common. Where clones are cheap it is copied once, into a template that no
// domain ever gets, and the copies are clones of it that get their own images
// only; see template.go. Elsewhere they can lie on it; see templateoverlay.go.
//
// A base on a block device has no template. That it was written to shows in its
// data alone, and to read all of it before each copy, for a digest, costs what a
// copy of it does: it is what the storage sends that takes the time. Nor do ids
// tell. VDSM never writes to the volume of a template, the id of which is used
// for nothing else; but that a volume is one is said only by its tags in the
// volume group of the storage domain, or by the metadata there, and diskhook
// runs no LVM command on a shared group: a start would wait for storage that
// hangs, with rights that vdsm does not have. And an array that was rolled back
// keeps all ids.
//
// # Who does what
//
// Observe looks at all disks of a domain at once (one LVM report). Decide is
// the whole protocol, a pure function of what was observed. Fulfil, called by
// a hook, acts on that: it activates ready copies with one lvchange, starts a
// process of its own for each copy that has to be filled, waits for those
// until a deadline, and makes the stable path. Fill is that process: it takes
// the disk's lock, looks again, and goes through the states. Children that
// write inherit the lock.
//
// # How it fails
//
// Closed. A refusal is a failure.Conflict or failure.Precondition whose hint
// is the command that is the way out; a copy that goes on beyond the deadline
// is a failure.Temporary; too little room is a failure.NoSpace before anything
// was created. A crash at any point leaves a state from which the same call
// converges: the tests kill it at every failpoint.
package localdisk
