// SPDX-License-Identifier: Apache-2.0

package lock

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holder is a process that has a lock.
type Holder struct {
	PID  int
	Argv []string
}

// HolderOf finds a process that has the lock called name in dir exclusively: the
// one that took it, or one that inherited it. It is for messages: it may have
// changed since. False is nobody, or somebody whom only root can see.
func HolderOf(dir, name string) (Holder, bool) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Holder{}, false
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return Holder{}, false
	}
	var heir Holder
	for _, process := range processes {
		pid, _ := strconv.Atoi(filepath.Base(process))
		taker, has := takerOf(process, filepath.Join(dir, name))
		if !has {
			continue
		}
		heir = Holder{pid, argv(process)}
		if taker == pid {
			break
		}
	}
	return heir, heir.PID != 0
}

// takerOf says whether a process has the file open through which it is locked,
// and who took the lock: proc(5)'s fdinfo has a line for each lock,
//
//	lock:	1: FLOCK  ADVISORY  WRITE 1234 00:19:5678 0 EOF
//
// Links in fd are read and never followed: what they lead to may hang.
func takerOf(process, path string) (pid int, has bool) {
	descriptors, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		return 0, false // it has gone, or is somebody else's
	}
	for _, fd := range descriptors {
		if to, err := os.Readlink(filepath.Join(process, "fd", fd.Name())); err != nil || to != path {
			continue
		}
		info, err := os.ReadFile(filepath.Join(process, "fdinfo", fd.Name()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			var number string
			if n, _ := fmt.Sscanf(line, "lock: %s FLOCK ADVISORY WRITE %d", &number, &pid); n == 2 {
				return pid, true
			}
		}
	}
	return 0, false
}

func argv(process string) []string {
	b, err := os.ReadFile(filepath.Join(process, "cmdline"))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}
