// SPDX-License-Identifier: Apache-2.0

// Package layout is what a thin cluster keeps on its shared volume group: which
// logical volumes there are, and the bytes of those that hosts and master read
// and write.
//
//	hosts               the map: who owns which block; written by the master only
//	global-thin-pool    the data; its first block carries a label
//	UUID.host           a host's header with journal, request and reply, and two
//	                    windows A and B for dm-thin metadata; written by that
//	                    host (the reply by the master)
//	UUID.thin           the mapping of a thin volume that is offline
//	UUID.raw, UUID.vhd  a volume of its own that needs no pool; no format of ours
//
// Everything little-endian, in blocks of 4 KiB, past the page cache: what
// another host wrote must be seen, and be on the disk when we say so.
//
// # Sealed state
//
// Map, label, mapping and host header are sealed: a 4 KiB header for each of two
// copies, then their contents, wherever there is room for the one that is not
// committed. A commit writes the new contents, flushes, writes the header,
// flushes, and reads both back. The header's 512 bytes are written twice, into
// the first and the last sector of its block:
//
//	 0  8  "dh-thin\n"          56  8  generation
//	 8  4  kind                 64  8  offset of the contents in bytes
//	12  4  version (1)          72  8  their length in bytes
//	16 16  UUID of the cluster  80  4  their CRC-32C
//	32 16  UUID of the object   84  4  0 for copy A, 1 for copy B
//	48  8  epoch               508  4  CRC-32C of bytes 0 to 507
//
// A crash at any write therefore leaves one header block as it was, and in the
// other at least one sector that is the old or the new header: the state is the
// old or the new one, and nothing has to be repaired. The next commit to a block of
// which one sector was torn writes that sector first. Where neither sector of a
// header can be read, or the newest header's contents do not match it, something
// else than a crash was at work. That is ErrDamaged: the other copy is an older
// state, and going back to it in silence would give blocks to two owners.
//
// # Epoch and generation
//
// The generation counts commits, the epoch counts masters. A commit names the
// state it follows and is refused when the disk has another generation
// (ErrMoved) or a higher epoch (ErrStale). A disk cannot compare and write at
// once, so a master that slept between check and write can still reach the idle
// copy. Therefore Claim, the first act of a new master, commits twice: whatever
// such a predecessor had in mind, it lands on the copy that is idle now, and a
// commit that it spoils is found by reading back. What keeps a sleeper from
// waking up at all is the fencing that an epoch requires.
//
// # How it fails
//
// What was never written is ErrEmpty, what is not ours ErrForeign, of another
// cluster ErrOtherCluster, of a later diskhook ErrVersion, what contradicts
// itself ErrInvalid. Each names the volume and the command that is the way out.
package layout
