// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// work is a folder on a real disk, which all users may enter. In the sandbox
// it is the one that the test binary outside made.
var work = os.Getenv("WORK")

func TestMain(m *testing.M) {
	if work != "" {
		if err := os.WriteFile("/etc/diskhook/diskhook.toml", []byte(roots), 0o644); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	code, err := inSandbox()
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

// inSandbox runs this test binary again in a sandbox, with the same arguments,
// and checks that the machine is afterwards as it was.
func inSandbox() (code int, err error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return 0, err
	}
	out := cmp.Or(os.Getenv("out"), "bin")
	if !filepath.IsAbs(out) {
		out = filepath.Join(root, out)
	}
	for _, program := range []string{"diskhook", "qemu-hook", "diskhook-helper", "diskhook-domain"} {
		if _, err := os.Stat(filepath.Join(out, program)); err != nil {
			return 0, fmt.Errorf("%w: run `make build` first, or `make integration`", err)
		}
	}
	before := machine()
	// Not below /tmp, which may be a tmpfs.
	work, err := os.MkdirTemp("/var/tmp", "diskhook-integration.")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Chmod(work, 0o755); err != nil {
		return 0, err
	}

	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command(filepath.Join(root, "contrib/libvirtd-sandbox/libvirtd-sandbox"), append([]string{
		"--security", "dac", "--namespaces", "--second", "far",
		"--prepare", filepath.Join(root, "contrib/integration/prepare"), "--", os.Args[0],
	}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), "WORK="+work, "out="+out)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	if after := machine(); after != before {
		err = errors.Join(err, fmt.Errorf("the machine itself was changed: before\n%safter\n%s", before, after))
	}
	return code, err
}

// machine is what must be the same before and after: where diskhook has its
// files, and libvirt its hooks and definitions.
func machine() string {
	var all strings.Builder
	for _, dir := range []string{
		"/etc/libvirt", "/etc/diskhook", "/var/lib/diskhook", "/run/diskhook",
		"/usr/bin/diskhook", "/usr/libexec/diskhook", "/usr/lib/tmpfiles.d/diskhook.conf",
	} {
		_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return nil // it is not there, or another program's
			}
			if st, err := os.Lstat(path); err == nil {
				fmt.Fprintln(&all, path, st.Mode(), st.Size(), st.ModTime())
			}
			return nil
		})
	}
	return all.String()
}
