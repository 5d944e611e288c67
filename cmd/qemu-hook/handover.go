// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// baseEnv is the environment that diskhook starts from: fixed values only.
func baseEnv() []string {
	return append([]string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, testEnv()...)
}

// hand replaces this process by argv, with xml on its standard input. It
// returns only when that failed, after it said so.
func hand(argv, env []string, xml document) {
	if err := setStdin(xml.text); err != nil {
		complain("hand over the domain XML: ", err.Error(), "; try again")
		return
	}
	argv[0] = programPath()
	err := syscall.Exec(argv[0], argv, env)
	complain("the domain has disks of diskhook, but ", argv[0], " cannot be started: ", err.Error(),
		"; install the package diskhook again")
}

// runAndForget runs argv as a child and ignores how it ends: not even a crash
// of diskhook may become our exit code.
func runAndForget(argv, env []string, xml document) {
	if xml.tooLarge() || setStdin(xml.text) != nil {
		return
	}
	argv[0] = programPath()
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		complain(argv[0], " cannot be started: ", err.Error(), "; install the package diskhook again")
		return
	}
	var status syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
			return
		}
	}
}

// setStdin makes text the standard input of this process. It lies in memory
// (memfd_create(2)) rather than in a pipe, which would need a writer that
// outlives the exec, or in a file, which would need a directory.
func setStdin(text []byte) error {
	fd, err := unix.MemfdCreate("domain.xml", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "domain.xml")
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return err
	}
	return unix.Dup3(fd, 0, 0) // the copy survives the exec
}
