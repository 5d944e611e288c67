// SPDX-License-Identifier: Apache-2.0

// Package etcd is the adapter that takes a thin cluster's membership from etcd.
//
// One adapter runs on each host, as a process of its own (cmd/diskhook-etcd). It
// holds a lease, says with it that its host lives, and stands for election. The
// one that is elected takes the next epoch, makes its host the master, and watches
// the others. All that it does to the cluster it does by running the hook verbs
// (package membership).
//
// # Keys
//
// Below PREFIX/CLUSTER, by default /diskhook/thin/CLUSTER:
//
//	epoch           the last epoch given to a master, a decimal number
//	election/LEASE  who stands for election; the oldest leads
//	live/HOST       exists while the host's adapter holds its lease; its boot
//	hosts/HOST      joined, left, fencing or fenced; stays without a lease
//
// # What a lost lease means
//
// That a lease ran out says that an adapter is not heard, nothing more. The leader
// then waits for the grace time, so that an etcd that was away itself costs no
// host its power, marks the host "fencing", and runs the site's fence command.
// Only when that succeeds it tells the master on-fenced. It marks a host only while
// live/HOST does not exist (in one transaction), and an adapter whose host is marked
// does not call on-join before a leader has decided: so that a host which was
// reset, and is up again before on-fenced was called, is not taken for dead.
//
// # Who leads
//
// A leader that was paused may wake up and act. Each write of it to etcd has the
// condition that its election key is still there, and each verb has its epoch,
// which the disk compares. An adapter that cannot make its host the master steps
// back and lets another try.
//
// # How it fails
//
// Run returns when its context ends; it then leaves in order. etcd that is away,
// or a verb that fails, is logged and tried again.
package etcd
