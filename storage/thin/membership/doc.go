// SPDX-License-Identifier: Apache-2.0

// Package membership is the seam between a thin cluster and the service that
// knows who is in it.
//
// diskhook decides nothing about membership: it holds no election and believes
// no heartbeat. An engine that a site has already (etcd, pacemaker, sanlock, or
// an operator) tells it what happened by running a verb of diskhook on a host:
//
//	thin on-join                 this host takes part: its pool starts, its monitor runs
//	thin on-leave                it takes part no more: both end, as far as guests let them
//	thin on-master --epoch E     this host is the master: it claims E on disk and serves requests
//	thin on-demoted              it is the master no more: it serves none
//	thin on-fenced --epoch E --evidence KIND:TEXT HOST
//	                             HOST cannot write any more; the master may recover its volumes
//
// Each may be called again, at any time, and exits 0 when what it says is so.
// The caller tries again on any other code: 4 means that the epoch is older
// than the disk's, which no repetition heals: another host is the master.
//
// # Epochs
//
// An epoch is a number that rises with each master. An engine that counts its
// elections gives it (etcd); for one that only promises that there is one master
// at a time, on-master without --epoch takes the one after the disk's. What
// keeps two masters apart is that the number is on the disk, and that a commit
// under a lower one is refused there: no message of an engine has to be on time.
//
// # Evidence
//
// A host that cannot be heard may still write. Evidence says how it is known that
// it does not: a fence agent succeeded, its lease on the disk died under a
// watchdog, an operator states it. That a lease of a network service ran out is
// no evidence, and there is no kind for it: such an adapter asks for evidence by
// running the site's fence command (Fence), and if there is none it says so and
// waits.
package membership
