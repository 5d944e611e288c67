// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var installed, steered string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "diskhook-helper")
	if err == nil {
		installed, steered = dir+"/diskhook-helper", dir+"/diskhook-helper.testroot"
		err = errors.Join(build(installed, ""), build(steered, "testroot"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func build(path, tags string) error {
	cmd := exec.Command("go", "build", "-tags", tags, "-ldflags", "-X main.version=1.2.3", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

type response struct {
	Result json.RawMessage
	Error  *struct{ Code, Message, Hint string }
}

func run(t *testing.T, program, stdin string, env []string, args ...string) (int, response, string) {
	t.Helper()
	dependsOn(t, ".", "../../hooks", "../../storage", "../../xmlrewrite")
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, strings.NewReader(stdin), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var r response
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v: stdout %q, stderr %q", err, &stdout, &stderr)
	}
	return cmd.ProcessState.ExitCode(), r, stderr.String()
}

const domain = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"

// TestMoved runs a verb below a root of its own, in the build that has one.
func TestMoved(t *testing.T) {
	root := t.TempDir()
	env := []string{"DISKHOOK_ROOT=" + root}
	receipts := filepath.Join(root, "var/lib/diskhook/receipts", domain)
	code, r, _ := run(t, steered, `{"domain":"`+domain+`"}`, env, "local", "mark-saved")
	if _, err := os.Stat(receipts); code != 0 || r.Error != nil || err == nil {
		t.Errorf("a mark for a domain without receipts: %d %+v %v", code, r.Error, err)
	}
	if err := errors.Join(os.MkdirAll(receipts, 0o755), os.WriteFile(filepath.Join(receipts, domain+".json"), []byte("{}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	code, r, _ = run(t, steered, `{"domain":"`+domain+`"}`, env, "local", "mark-saved")
	if code != 0 || r.Error != nil {
		t.Errorf("%d %+v", code, r.Error)
	}
	if _, err := os.Stat(filepath.Join(receipts, "saved")); err != nil {
		t.Error(err)
	}
	code, r, _ = run(t, steered, "{}", env, "local", "format", "/dev/sda")
	if code != 1 || r.Error == nil || r.Error.Code != "usage" {
		t.Errorf("%d %+v", code, r.Error)
	}
}

// TestNotSteered: the installed build takes nothing from its environment. It
// refuses on a host that is not oVirt's, and on one that is refuses the request.
func TestNotSteered(t *testing.T) {
	root := t.TempDir()
	env := []string{"DISKHOOK_ROOT=" + root, "DISKHOOK_PROGRAM=/tmp/evil", "DISKHOOK_TOOLS=/tmp/evil", "PATH=/tmp/evil"}
	code, r, _ := run(t, installed, `{"domain":"../x"}`, env, "local", "mark-saved")
	if code != 1 || r.Error == nil || r.Error.Message == "" {
		t.Errorf("%d %+v", code, r)
	}
	if made, _ := os.ReadDir(root); len(made) != 0 {
		t.Errorf("made %v", made)
	}
}

// TestConnector tells of the host, and has multipathd asked, which may hang:
// the caller is told so in the time that it waits.
func TestConnector(t *testing.T) {
	root := t.TempDir()
	env := []string{"DISKHOOK_ROOT=" + root, "DISKHOOK_TOOLS=" + root + "/tools"}
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/iscsi/initiatorname.iscsi", "# open-iscsi\nInitiatorName=iqn.1994-05.com.redhat:h1\n", 0o600)
	write("tools/multipathd", "#!/bin/sh\n[ \"$*\" = 'show status' ]\n", 0o755)
	code, r, _ := run(t, steered, "{}", env, "volume", "connector")
	var told struct {
		Host, Initiator string
		Multipath       bool
		IP              *string
	}
	if err := json.Unmarshal(r.Result, &told); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	name, err := os.Hostname()
	if err != nil || code != 0 || r.Error != nil || told.Host != name || told.Initiator != "iqn.1994-05.com.redhat:h1" || !told.Multipath || told.IP != nil {
		t.Errorf("%d %s %v", code, r.Result, err)
	}
	write("tools/multipathd", "#!/bin/sh\nexec sleep 600\n", 0o755)
	code, r, _ = run(t, steered, "{}", env, "volume", "connector")
	if code != 1 || r.Error == nil || r.Error.Code != "temporary" || !strings.Contains(r.Error.Message, "multipathd: no answer") {
		t.Errorf("%d %s %+v", code, r.Result, r.Error)
	}
}

// TestBrokenConfiguration: what others could have written is refused; what is
// merely wrong is told, and the work goes on.
func TestBrokenConfiguration(t *testing.T) {
	root := t.TempDir()
	env := []string{"DISKHOOK_ROOT=" + root}
	config := filepath.Join(root, "etc/diskhook/diskhook.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(config), 0o755), os.WriteFile(config, []byte("odd = 1\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	code, r, stderr := run(t, steered, `{"domain":"`+domain+`"}`, env, "local", "clear-saved")
	if code != 0 || r.Error != nil || !strings.Contains(stderr, "unknown key odd") {
		t.Errorf("%d %+v %q", code, r.Error, stderr)
	}
	if err := os.Chmod(config, 0o666); err != nil {
		t.Fatal(err)
	}
	code, r, _ = run(t, steered, `{"domain":"`+domain+`"}`, env, "local", "clear-saved")
	if code != 1 || r.Error == nil || r.Error.Code != "precondition" || !strings.Contains(r.Error.Hint, "chmod") {
		t.Errorf("%d %+v", code, r.Error)
	}
}

func TestVersion(t *testing.T) {
	out, err := exec.Command(installed, "--version").Output()
	if err != nil || string(out) != "diskhook-helper 1.2.3\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// dependsOn looks at the sources of the programs that tests build and run: the
// go command takes the result of an earlier run otherwise, as the test binary
// itself is the same.
func dependsOn(t *testing.T, dirs ...string) {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
