// SPDX-License-Identifier: Apache-2.0

// Package managed attaches volumes that somebody else's storage management
// provides, describes them, and takes them away again: what VDSM does with
// Cinder's connection_info, with its names, its JSON and its error codes, on
// any host.
//
// # What is where
//
//	managed            the service: definitions, claims, Attach, Detach,
//	                   VolumesInfo, ConnectorInfo, Reconcile; what a dry run
//	                   tells (explain.go); VDSM's helper (rowless.go); whose a
//	                   device is (which.go); growing (rescan.go)
//	managed/database   which volumes are attached: VDSM's schema, and ours beside it
//	managed/connector  how: one file for each type of connection
//
// # What a volume is
//
// A volume has an id and a connection_info. On a plain host both are in a
// definition, which survives detach and reboot; VDSM's host agent sends the
// connection with each request. What it is when it is attached first (WWN,
// size) is kept with the definition, and must be true ever after.
//
// Attached, it has a row in the database and a link /run/diskhook/volumes/ID,
// the path that domains name. A row says in which boot it was written: one of
// an earlier boot tells nothing of the kernel, and is replaced by the next
// attach. A domain's claim makes a volume its own on this host; releasing it
// detaches only what was attached for it.
//
// # How a crash is survived
//
// Attach writes the row before it connects anything, and the outcome after
// that; Detach deletes the row last. So whatever is connected has a row, and
// the next Attach, Detach or Reconcile goes on from there: connectors look at
// what there is, and go by the connection where the outcome is not known.
// The tests kill both at every failpoint.
//
// # How it fails
//
// An Attach that fails takes away again what it connected; where even that
// fails the row stays, and the error names the command that finishes it. What
// somebody has open is never taken away. CodeOf gives VDSM's number for each
// error. Secrets are in the definition, in the database (both root's alone)
// and in private files of programs, and nowhere else.
//
// # What has run
//
// iscsi, over open-iscsi 2.1.8 and multipath-tools 0.9.4, nvmeof over TCP with
// nvme-cli 2.3, local and nfs have met targets of the kernel's (Linux 6.1).
// rbd, fibre_channel and NVMe over RDMA are tested against programs and a sysfs
// that pose as theirs, made from their documentation and the kernel's, and have
// met no storage yet.
package managed
