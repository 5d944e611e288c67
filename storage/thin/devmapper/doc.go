// SPDX-License-Identifier: Apache-2.0

// Package devmapper is the kernel's device-mapper, as far as a thin cluster needs
// it: pools, thin devices, linear windows and errors.
//
// Mapper is the interface. Kernel implements it by ioctl(2) on
// /dev/mapper/control (Documentation/admin-guide/device-mapper, include/uapi/
// linux/dm-ioctl.h) and not by running dmsetup(8): while a hand-over has guests'
// devices suspended, a program that has to be loaded from a disk may wait for
// just these guests; errors come as numbers rather than as words; and nothing
// waits for udev, as /dev/dm-N is there at once. Its devices are hidden from udev's
// other rules, so that nobody scans what guests put on them. Package
// devmappertest has a kernel in memory that behaves alike, and the table of
// behaviours that both have to pass.
//
// Lengths in tables are in sectors of 512 bytes, as the kernel has them.
//
// Errors are *Error with the kernel's number, found with errors.Is (EBUSY, EEXIST,
// …), and of the kinds that go with it. A success of a discard says nothing: a
// pool that is read-only drops it. Ask for the status.
package devmapper
