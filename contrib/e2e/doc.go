// SPDX-License-Identifier: Apache-2.0

// Package e2e tests diskhook as it is installed, on a host of its own: a
// kernel with device-mapper, a volume group with a thin pool, udev, systemd,
// an NFS server, libvirtd, VDSM's user and directories. The host is the test
// guest (contrib/testguest), so that its power can be cut.
//
// A test here is a list of boots of one host (boot_test.go). Run on the machine
// it starts the guest once per boot; run in the guest, as the same program, it
// does what that boot is for. A file is a group of scenarios:
//
//	copies_test.go    a copy is made, reused, made once by two starts
//	space_test.go     volume group, pool and source are full or missing
//	receipts_test.go  copies that were renamed, replaced, removed, held open
//	away_test.go      the shared storage hangs, before and during a copy
//	giveup_test.go    resize, export, remove, recreate
//	fault_*_test.go   server, disks, space, sources and the clock fail in the middle
//	leftovers_test.go adopt --all and gc, of what oVirt's hook and crashes left
//	powercut_test.go  the power goes in each state of a copy
//	instant_*_test.go overlays in volumes: settled, made raw, the emulator killed
//	settlecut_test.go the power goes in each state of that
//	libvirtd_test.go  apply, start, restart of libvirtd, autostart after a reboot
//	ovirt_test.go     VDSM's hook points as the user vdsm
//	managed_*_test.go volumes from the kernel's iSCSI and NVMe targets, LV, NFS server
//	quorum_*_test.go  a replica set on volumes and an NFS server, its unit, faults
//	repository_*_test.go  a storage repository that two hosts have on an NFS server
//	repository_group_test.go   one on a volume group that one host writes
//	repository_shared_test.go  one on a group of lvmlockd's that two hosts have
//	thin_kernel_test.go  dm-thin behaves as the kernel in memory that unit tests use
//	thin_export_test.go  volumes leave a thin cluster and come into another one
//	thin_cluster_test.go  two hosts on one disk are a thin cluster
//	thin_domain_test.go  a domain has a volume of a thin cluster when the power goes
//	thin_local_test.go   local copies in its pool, unfinished and ready when that happens
//	thin_crash_test.go    each loses its power twice in the middle of a verb
//	thin_readme_test.go   three hosts do what README.md says of a thin cluster
//
// Everything is checked by content (qemu-img compare with the source's chain),
// by what must not have changed, and by the line an operator would read.
package e2e
