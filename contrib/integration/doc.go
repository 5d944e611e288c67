// SPDX-License-Identifier: Apache-2.0

// Package integration tries the installed programs against real libvirtds,
// with virtual machines whose guests really write to their disks.
//
// The tests run inside contrib/libvirtd-sandbox: TestMain starts the test
// binary again in there. The sandbox has two hosts, main and far, each with a
// libvirtd that works as Debian configures it (QEMU has a user and a /dev of
// its own). The script prepare installs diskhook on both, where the package
// would, in layers that only the sandbox sees.
//
// The programs are built without any test tag, so nothing steers them but
// their configuration. The tests look at what an operator can see: the state
// of a domain, virsh's messages, files, links and their owners, and what a
// guest found on its disk.
package integration
