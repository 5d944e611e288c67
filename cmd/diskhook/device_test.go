// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// condition adds [root]: only root makes devices and mounts; and [fuse].
func condition(name string) (bool, error) {
	switch name {
	case "root":
		return os.Geteuid() == 0, nil
	case "fuse":
		return os.Getenv("SKIP_FUSE") == "", nil
	}
	return false, fmt.Errorf("unknown condition %q", name)
}

// device FILE VARIABLE: a block device with the content of a file, which may be
// the source of a disk.
func device(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: device FILE VARIABLE")
	}
	out, err := exec.Command("losetup", "-f", "--show", ts.MkAbs(args[0])).Output()
	ts.Check(err)
	path := strings.TrimSpace(string(out))
	ts.Defer(func() { ts.Check(exec.Command("losetup", "-d", path).Run()) })
	ts.Setenv(args[1], path)
	settings := ts.MkAbs("root/etc/diskhook/diskhook.toml")
	text := strings.Replace(ts.ReadFile(settings), "roots = [", fmt.Sprintf("roots = [%q, ", path), 1)
	ts.Check(os.WriteFile(settings, []byte(text), 0o644))
}

// hang DIR: mount a file system there that nobody serves, so that every look
// below it hangs, as on a dead NFS server.
func hang(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hang DIR")
	}
	dir := ts.MkAbs(args[0])
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	ts.Check(err)
	err = unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
	if err != nil {
		fuse.Close()
		ts.Fatalf("mount: %v (SKIP_FUSE=1 leaves this out)", err)
	}
	ts.Defer(func() {
		fuse.Close() // ends what hangs
		ts.Check(unix.Unmount(dir, unix.MNT_DETACH))
	})
}

// small DIR SIZE: mount a tmpfs of that size there.
func small(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: small DIR SIZE")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(unix.Mount("small", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { ts.Check(unix.Unmount(dir, unix.MNT_DETACH)) })
}
