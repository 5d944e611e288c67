// SPDX-License-Identifier: Apache-2.0

// Package vdsm tests what stands in for files of VDSM and os-brick.
package vdsm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestShim runs the helper as releases of VDSM do, through Python and by
// itself: diskhook gets the verb and standard input, and no environment that
// could steer it.
func TestShim(t *testing.T) {
	dir := t.TempDir()
	diskhook := filepath.Join(dir, "diskhook")
	if err := os.WriteFile(diskhook, []byte("#!/bin/sh\necho \"$*\"; echo \"${DISKHOOK_ROOT-unset} $PATH\"; cat; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	shim, err := os.ReadFile("managedvolume-helper")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(shim), `"/usr/bin/diskhook"`) != 1 {
		t.Fatal("the shim does not name the installed program once")
	}
	helper := filepath.Join(dir, "managedvolume-helper")
	if err := os.WriteFile(helper, []byte(strings.Replace(string(shim), "/usr/bin/diskhook", diskhook, 1)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{helper, "attach"}, {"/usr/bin/python3", helper, "attach"}} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = []string{"DISKHOOK_ROOT=/evil", "PATH=/evil"}
		cmd.Stdin = strings.NewReader(`{"connection_info":{}}`)
		out, _ := cmd.Output() // the code is looked at below
		want := "volume helper attach\nunset /usr/sbin:/usr/bin:/sbin:/bin\n" + `{"connection_info":{}}`
		if string(out) != want || cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("%q: %q, code %d", argv, out, cmd.ProcessState.ExitCode())
		}
	}
}

// TestStandIn finds a package that Python can import and that has nothing.
func TestStandIn(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-B", "-c", "import os_brick; print([n for n in dir(os_brick) if n[0] != '_'])")
	cmd.Dir = "."
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "[]\n" {
		t.Errorf("%v: %s", err, out)
	}
}

// TestManagedVolumes: enabling keeps VDSM's file and disabling brings it back,
// whichever VDSM was installed meanwhile.
func TestManagedVolumes(t *testing.T) {
	root := t.TempDir()
	helper := root + "/usr/libexec/vdsm/managedvolume-helper"
	run := func(verb string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "./managedvolumes", "--root", root, verb).CombinedOutput()
		return string(out), err
	}
	has := func(want string, exact ...string) {
		t.Helper()
		var all []string
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				all = append(all, filepath.Base(path))
			}
			return err
		})
		slices.Sort(all)
		if diff := cmp.Diff(exact, all); diff != "" {
			t.Error(diff)
		}
		if got, err := os.ReadFile(helper); want != "" && (err != nil || string(got) != want) {
			t.Errorf("VDSM's helper: %q, %v", got, err)
		}
		if to, err := os.Readlink(helper); want == "" && to != "/usr/libexec/diskhook/vdsm/managedvolume-helper" {
			t.Errorf("the helper: %q, %v", to, err)
		}
	}
	if out, err := run("enable"); err == nil || !strings.Contains(out, "VDSM is not installed here") {
		t.Errorf("without VDSM: %v %s", err, out)
	}
	write := func(content string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(helper), 0o755), os.RemoveAll(helper), os.WriteFile(helper, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	expect := func(verb, words string, fails bool) {
		t.Helper()
		if out, err := run(verb); (err != nil) != fails || !strings.HasPrefix(out, words) {
			t.Errorf("%s: %v %s", verb, err, out)
		}
	}
	expect("status", "disabled: ", false)
	for range 2 {
		expect("enable", "", false)
		has("", "diskhook-os-brick.pth", "managedvolume-helper", "managedvolume-helper.vdsm")
		expect("status", "enabled: ", false)
	}
	for range 2 {
		expect("disable", "", false)
		has("one", "managedvolume-helper")
	}
	expect("enable", "", false)
	write("two") // an update of VDSM
	expect("status", "broken: ", true)
	expect("enable", "", false)
	expect("disable", "", false)
	has("two", "managedvolume-helper")
	expect("enable", "", false)
	write("three")
	expect("disable", "", false)
	has("three", "managedvolume-helper")
	expect("upgrade", "usage: ", true)
}

// TestStandInComesLast: an os_brick that is installed is found before ours.
func TestStandInComesLast(t *testing.T) {
	site, ours := t.TempDir(), t.TempDir()
	for dir, text := range map[string]string{ours: "which = 'ours'", site: "which = 'real'"} {
		if err := errors.Join(os.Mkdir(dir+"/os_brick", 0o755), os.WriteFile(dir+"/os_brick/__init__.py", []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(site+"/diskhook-os-brick.pth", []byte(ours+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	which := func() string {
		out, _ := exec.CommandContext(t.Context(), "/usr/bin/python3", "-I", "-B", "-S", "-c",
			"import site, sys; site.addsitedir(sys.argv[1]); import os_brick; print(os_brick.which)", site).CombinedOutput()
		return string(out)
	}
	if got := which(); got != "real\n" {
		t.Error(got)
	}
	if err := os.RemoveAll(site + "/os_brick"); err != nil {
		t.Fatal(err)
	}
	if got := which(); got != "ours\n" {
		t.Error(got)
	}
}
