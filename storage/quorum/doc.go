// SPDX-License-Identifier: Apache-2.0

// Package quorum keeps replica sets: N images with the same content, of which
// a guest reads what a threshold of them agrees on (QEMU's driver quorum).
//
// QEMU votes, and no more. It opens a set only when every child opens, never
// drops a child whose write failed, keeps no log of what was in flight, and
// lets two replicas win that are equally out of date. This package decides who
// may vote at all.
//
// # Definitions
//
// A Set is a root-only file of the host, NAME.json (set.go, store.go). A verb
// that takes long leaves an Intent in it before it acts; whoever calls the same
// verb again goes on from there.
//
// # Marks
//
// Beside each replica lies a Mark (mark.go): a sidecar PATH.quorum in the
// image's folder, a tag on a logical volume, or, for what has no place of its
// own (NBD, plain devices), a file in the host's state. It names the set, the
// replica, and the generation the replica's content belongs to. A generation
// is known by its Raise, which is unique, not by its number, and it lists all
// the replicas it was raised on.
//
// A generation rises, durably and on all replicas that vote, before a guest
// can write, and again on the others when one of them is in doubt. Only after
// that it is acknowledged: the host notes it, and the guest's writes may be
// in it. One whose raise never finished is recognised by a member that has
// not got it; it counts as the generation it was raised from. When the guest
// has gone and everything is flushed, the mark becomes clean.
//
// QEMU acknowledges a write that a threshold of its children took before its
// reports about the others reach us. If the power fails within that moment, the
// bad replicas still have the newest generation; but none is clean then, so the
// rule for unclean sets holds and a majority decides. It has to be more than can
// lack such a write (Decision.Behind): of five replicas with a threshold of three,
// two bad ones must not outvote the only good one that is there the next time.
// What fewer agree on stays as it is, and the guest's read of it fails.
//
// With the replicas in a guest's own QEMU (inline.go) nobody stands between a
// report and the next acknowledgement. There a suspect keeps its vote and the
// generation stays, since the others alone may lack what was acknowledged with
// the suspect's help (Doubt); the set is unclean from its start on, and the next
// one needs all replicas, and the majority of all.
//
// # Deciding
//
// Decide (decide.go) is the protocol, a pure function of what was observed:
// the newest generation that may have been acknowledged, at least threshold of
// its replicas or a veto, the rest is left out and brought up to date later.
// An unclean generation starts with three replicas or more, since a majority
// can then repair it; fewer is a veto until somebody names the one to believe.
// Foresee is for who asks what a start would do, which activates volumes first.
//
// # The disk that a set replaces
//
// Current is for who binds a disk to a set and may take time, Fits for the start
// of a disk that has not used the set before: both refuse a set that may hold
// something older than the disk. The definition has the Source whose content
// the set holds, which goes when the first guest is about to write, and from then
// on the User, the disk whose guest wrote to it last. No other disk gets the
// set before that was given up (Forget), and nobody removes it. Nothing tells of
// writes to a block device; there a comparison counts for an hour, or, once a
// domain is bound, for that domain's disk.
//
// # Parts
//
//	set.go store.go   definitions            build.go    build
//	mark.go tag.go    marks                  verify.go   compare all replicas
//	observe.go        look at all replicas   resync.go   repair from the majority
//	decide.go         who votes              replace.go  replace
//	raise.go          generations            remove.go   remove
//	room.go           is there space         status.go   what is known offline
//	node.go           QEMU's -blockdev trees
//	crew.go           the replicas that an offline verb has open
//	walk.go           reads replicas side by side, through qemu-storage-daemon
//
//	source.go         the disk that a set holds the content of
//	takeover.go       whose disk a set becomes, is and was
//
//	start.go          claims a set and has it served; control.go asks who serves it
//	serve.go          the unit's process; session.go the life of one voting daemon
//	sessionopen.go sessionend.go  its begin and its end
//	daemon.go         qemu-storage-daemon and its monitor
//	suspect.go        who is bad, and what follows; events.go what is remembered
//	inline.go         a guest whose own QEMU has the replicas; watch.go and doubt.go
//	                  what that reports of them
//	remote.go         replicas that may hang
//	gate.go door.go   guests' connections, also while replicas are made equal
//	online.go         brings a replica up to date while guests write; retry.go when
//	                  one that failed is tried again
//	rundir.go live.go the set's folder in /run
//
// Whoever uses the replicas of a set, the daemon that serves it or an offline
// verb, holds the set's lock (Service.Lock) as long as it does; so the verbs
// refuse while the set is served, and two verbs never meet.
//
// # How it fails
//
// Closed. A refusal is a failure.Conflict or failure.Precondition, names the
// replicas that are missing or out of date, and its hint is the command that
// is the way out. A crash at any point leaves a set that the same verb, called
// again, brings to its end; the tests kill each verb at every step.
package quorum
