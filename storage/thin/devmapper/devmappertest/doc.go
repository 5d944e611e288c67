// SPDX-License-Identifier: Apache-2.0

// Package devmappertest is a kernel in memory with device-mapper, for tests of
// what drives one.
//
// A SAN holds the disks; each Kernel is a host that sees all of them, so that two
// are two hosts on one LUN. Crash takes a kernel away: what it had committed stays
// on the disks, and nothing else. Time passes only by Elapse.
//
// It behaves as dm-thin does where a thin cluster depends on it: whether a write
// copies is a question of times and not of reference counts; a freed block is
// used again after a commit only; without space writes wait, and fail after the
// timeout; a pool that is read-only takes discards and drops them; metadata are
// read when a pool is made, written at commits, and never read again. Behaviours
// is the table of these facts, which the kernel in memory passes in unit tests and
// a real one in the test guest: a fact that is not in it is not to be relied on.
//
// Not modelled: how metadata lie on their disk (an Image stands for them), their
// running full, and a data device that takes passed-down discards.
package devmappertest
