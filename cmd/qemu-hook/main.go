// SPDX-License-Identifier: Apache-2.0

// Command qemu-hook is what libvirt and VDSM execute: it decides in a
// millisecond whether diskhook has anything to do, and hands over if so.
//
// libvirt calls it for every step of every domain on the host, and VDSM for
// every VM, so a domain that is none of ours must cost as much as /bin/true
// and can never fail. A domain is ours if its XML has the bytes urn:diskhook:1
// or /run/diskhook/volumes/, if VDSM's environment has one of our properties, or
// if the host has receipts for its UUID. Nothing else is looked at: no
// configuration, no storage.
//
// A domain of ours is handed to `diskhook hook run` by exec, with an
// environment of fixed names only: VDSM puts custom properties of the VM into
// the environment, and those must not steer a program. If diskhook cannot be
// started, the start is vetoed with one line on stderr; operations whose
// failure would kill a running machine end with 0 whatever happens.
//
// Start-up time is the point of this program, hence its few imports (a test
// holds them to a list) and the absence of fmt.
package main

import "os"

// program is diskhook, set by the linker (-X main.program=…).
var program = "/usr/bin/diskhook"

// version is set by the linker.
var version = "unknown"

func main() {
	switch {
	case len(os.Args) >= libvirtArgs:
		os.Exit(fromLibvirt(os.Args[1:libvirtArgs]))
	case len(os.Args) == 2 && os.Args[1] == "--version":
		_, _ = os.Stdout.WriteString("qemu-hook " + version + "\n")
	case len(os.Args) == 2 && (os.Args[1] == "--help" || os.Args[1] == "-h"):
		_, _ = os.Stdout.WriteString("qemu-hook is what libvirt and VDSM execute to make a domain's disks ready; see man qemu-hook\n")
	default:
		os.Exit(fromVDSM(os.Args))
	}
}

// complain prints the line that libvirt and VDSM show to the operator.
func complain(parts ...string) {
	line := "qemu-hook: "
	for _, part := range parts {
		line += part
	}
	_, _ = os.Stderr.WriteString(line + "\n")
}
