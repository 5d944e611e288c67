// SPDX-License-Identifier: Apache-2.0

package contrib

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestLocksOfVDSM: vdsm may take a lock, and may not get rid of the file of one
// that somebody else holds. Everybody reads the rule; as root it is tried.
func TestLocksOfVDSM(t *testing.T) {
	rule, err := os.ReadFile("tmpfiles/diskhook-vdsm.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range []string{" user:vdsm:--x,", ",default:user:vdsm:rw,"} {
		if !strings.Contains(string(rule), entry) {
			t.Errorf("no %q in %s", entry, rule)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	root := t.TempDir()
	for dir := root; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // on the way down for vdsm
			t.Fatal(err)
		}
	}
	config := filepath.Join(root, "usr/lib/tmpfiles.d")
	etc := filepath.Join(root, "etc")
	err = errors.Join(os.MkdirAll(config, 0o755), os.MkdirAll(etc, 0o755),
		os.WriteFile(etc+"/passwd", []byte("root:x:0:0::/:/bin/sh\n"), 0o644), os.WriteFile(etc+"/group", []byte("root:x:0:\n"), 0o644))
	for _, name := range []string{"diskhook.conf", "diskhook-vdsm.conf"} {
		text, readErr := os.ReadFile("tmpfiles/" + name)
		byNumber := strings.ReplaceAll(string(text), "user:vdsm:", "user:36:") // names would be this machine's
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(config, name), []byte(byNumber), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-tmpfiles", "--root="+root, "--create").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lock := filepath.Join(root, "run/diskhook/lock/disk")
	if err := os.WriteFile(lock, nil, 0o660); err != nil {
		t.Fatal(err)
	}
	for script, permitted := range map[string]bool{
		`exec 9<>"$1" && flock -n 9`: true,
		`rm -f "$1"`:                 false,
		`mv "$1" "$1.old"`:           false,
		`: >"$1.new"`:                false,
		`ls "$(dirname "$1")"`:       false,
	} {
		cmd := exec.Command("sh", "-c", script, "sh", lock)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 36, Gid: 36}}
		if out, err := cmd.CombinedOutput(); (err == nil) != permitted {
			t.Errorf("as vdsm: %s: %v: %s", script, err, out)
		}
	}
	if st, err := os.Stat(filepath.Dir(lock)); err != nil || st.Mode().Perm()&0o007 != 0 {
		t.Errorf("others in the directory of locks: %v, %v", st, err)
	}
}
