// SPDX-License-Identifier: Apache-2.0

// Command diskhook makes the disks of virtual machines ready on their host. It
// is the operator's command line, and what hooks and copy processes run.
//
// Every file but this one and a few shared ones is a noun (or a verb without
// one): its flags, and actions that parse, call a package and print. exit.go
// has the exit codes, guard.go what keeps the command line strict, output.go
// and progress.go how things are told.
package main

import (
	"context"
	"os"
)

// Set by the linker (-X main.…).
var (
	version       = "unknown"
	domainProgram = "/usr/libexec/diskhook/diskhook-domain"
	etcdProgram   = "/usr/libexec/diskhook/diskhook-etcd"
)

func main() { os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr)) }
