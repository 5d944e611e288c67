// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"diskhook/storage/host"
	"diskhook/storage/managed/connector/connectortest"
)

// The test binary is diskhook, and poses as the programs that diskhook calls:
// diskhook-domain over a directory of JSON files (fakedomain_test.go), and lvm
// as a script tells it to; and as what attaches volumes, once a script has asked
// for storage (fakestorage_test.go). qemu-img is the real one.
func TestMain(m *testing.M) {
	programs := map[string]func(){
		"diskhook":        func() { os.Exit(diskhook()) },
		"diskhook-domain": func() { os.Exit(fakeDomain(os.Args[1:], os.Stdin, os.Stdout)) },
		"lvm":             func() { os.Exit(fakeLVM(os.Args[1:])) },
	}
	for _, name := range connectortest.Programs() {
		programs[name] = func() { os.Exit(connectortest.Main(os.Args)) }
	}
	testscript.Main(m, programs)
}

// diskhook is main, with storage that poses.
func diskhook() int {
	p := &program{
		args: os.Args, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		layout: host.Layout{Root: os.Getenv("DISKHOOK_ROOT")}, storage: fakeStorage,
		kernel: fakeKernel,
	}
	return p.run(context.Background())
}

func TestScripts(t *testing.T) {
	trees := &keptTrees{byWork: map[string]map[string]string{}}
	hosts := &kernels{byWork: map[string]*kernelHost{}}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup:               setUp,
		Condition:           condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"hang":      hang,
			"small":     small,
			"image":     image,
			"device":    device,
			"domain":    defineDomain,
			"facts":     setFacts,
			"edit":      editDomain,
			"keep":      trees.keep,
			"unchanged": trees.unchanged,
			"exits":     exits,
			"sub":       substitute,
			"waitfor":   waitFor,
			"storage":   storage,
			"kernel":    hosts.command,
		},
	})
}

const machineID = "0123456789abcdef0123456789abcdef"

// setUp makes a host below $WORK/root with images in $WORK/images.
func setUp(e *testscript.Env) error {
	at := func(path string) string { return filepath.Join(e.WorkDir, path) }
	for _, dir := range []string{"root/etc/diskhook", "images", "libvirt", "tools", "shots"} {
		if err := os.MkdirAll(at(dir), 0o755); err != nil {
			return err
		}
	}
	lvm := ""
	domain := ""
	for dir := range strings.SplitSeq(e.Getenv("PATH"), string(filepath.ListSeparator)) {
		if p := filepath.Join(dir, "diskhook-domain"); domain == "" && exists(p) {
			domain, lvm = p, filepath.Join(dir, "lvm")
		}
	}
	if err := os.Symlink(lvm, at("tools/lvm")); err != nil {
		return err
	}
	files := map[string]string{
		"root/etc/machine-id": machineID + "\n",
		"root/etc/diskhook/diskhook.toml": fmt.Sprintf(
			"[paths]\nroots = [%q]\n[local]\nreserve = 0\n", at("images")),
	}
	for path, content := range files {
		if err := os.WriteFile(at(path), []byte(content), 0o644); err != nil {
			return err
		}
	}
	e.Setenv("DISKHOOK_ROOT", at("root"))
	e.Setenv("DISKHOOK_TOOLS", at("tools"))
	e.Setenv("DISKHOOK_DOMAIN_PROGRAM", domain)
	e.Setenv("DISKHOOK_FAKE_LIBVIRT", at("libvirt"))
	e.Setenv("LIBVIRT_DEFAULT_URI", "fake:///system")
	return nil
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// image FILE SIZE: a raw image with data here and there.
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: image FILE SIZE")
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	ts.Check(f.Truncate(size))
	for off := int64(0); off < size; off += 1 << 20 {
		block := sha256.Sum256([]byte(args[0] + strconv.FormatInt(off, 10)))
		_, err := f.WriteAt(bytes.Repeat(block[:], 128), off)
		ts.Check(err)
	}
}

// sub FILE…: expand $VARIABLES in files of the script.
func substitute(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args {
		text := os.Expand(ts.ReadFile(file), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(file), []byte(text), 0o644))
	}
}

// exits CODE PROGRAM ARGS…: run it and check the exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARGS]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit %d, want %d", got, want)
	}
}

// tree is what is below root, images and libvirt, byte by byte, but for logs.
func tree(ts *testscript.TestScript) map[string]string {
	all := map[string]string{}
	for _, top := range []string{"root", "images", "libvirt"} {
		err := filepath.WalkDir(filepath.Join(ts.Getenv("WORK"), top), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.Name() == "hook.log" || d.Name() == "argv" {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			what := info.Mode().String()
			switch {
			case info.Mode().IsRegular():
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				what += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
			case info.Mode()&fs.ModeSymlink != 0:
				to, err := os.Readlink(path)
				if err != nil {
					return err
				}
				what += " → " + to
			}
			all[path] = what
			return nil
		})
		ts.Check(err)
	}
	return all
}

// keptTrees are what scripts, which run side by side, remembered.
type keptTrees struct {
	mu     sync.Mutex
	byWork map[string]map[string]string
}

// keep: remember the tree. unchanged: it must be the same now.
func (k *keptTrees) keep(ts *testscript.TestScript, _ bool, _ []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.byWork[ts.Getenv("WORK")] = tree(ts)
}

func (k *keptTrees) unchanged(ts *testscript.TestScript, neg bool, _ []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	diff := cmp.Diff(k.byWork[ts.Getenv("WORK")], tree(ts))
	if neg == (diff == "") {
		ts.Fatalf("the tree: %s", diff)
	}
}
