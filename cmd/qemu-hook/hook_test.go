// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	uuid  = "69b6b942-b5bf-4740-bb95-6752ffbd3bcf"
	plain = "<domain type='kvm'>\n  <name>x</name>\n  <uuid>" + uuid + "</uuid>\n</domain>\n"
	bound = "<domain type='kvm'>\n  <name>x</name>\n  <uuid>" + uuid + "</uuid>\n  <metadata><dh:disks xmlns:dh=\"urn:diskhook:1\"/></metadata>\n</domain>\n"
)

// hooks are the two builds: the one that is installed, and the one that tests
// can steer.
type hooks struct{ installed, steered, diskhook string }

var built hooks

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "qemu-hook")
	if err == nil {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the hooks, and a diskhook that writes down how it was called.
func build(dir string) error {
	built = hooks{dir + "/qemu-hook", dir + "/qemu-hook.testroot", dir + "/diskhook"}
	script := `#!/bin/sh
cd "$(dirname "$0")"
{ for a in "$@"; do printf '%s\0' "$a"; done; } >argv
cat >stdin
cat /proc/self/environ >env
[ ! -e say ] || cat say
[ ! -e code ] || { echo 'why it failed' >&2; exit $(cat code); }
`
	if err := os.WriteFile(built.diskhook, []byte(script), 0o755); err != nil {
		return err
	}
	for path, tags := range map[string]string{built.installed: "", built.steered: "testroot"} {
		cmd := exec.Command("go", "build", "-tags", tags, "-ldflags", "-X main.version=1.2.3 -X main.program="+built.diskhook, "-o", path, ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}

// result is what a caller of the hook sees, and what diskhook saw, if it was
// called at all.
type result struct {
	Code           int
	Stdout, Stderr string
	Called         bool
	Argv, Env      []string
	Stdin          string
}

// run starts a hook with exactly this environment. name is argv[0].
func run(t *testing.T, hook, name string, env []string, stdin string, args ...string) result {
	t.Helper()
	dependsOn(t, ".")
	dir := filepath.Dir(built.diskhook)
	for _, file := range []string{"argv", "env", "stdin"} {
		_ = os.Remove(filepath.Join(dir, file))
	}
	var stdout, stderr bytes.Buffer
	cmd := &exec.Cmd{Path: hook, Args: append([]string{name}, args...), Env: env, Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr, Dir: "/"}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r := result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
	argv, err := os.ReadFile(filepath.Join(dir, "argv"))
	if err != nil {
		return r
	}
	r.Called = true
	r.Argv = strings.Split(strings.TrimSuffix(string(argv), "\x00"), "\x00")
	got, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range strings.Split(strings.TrimSuffix(string(got), "\x00"), "\x00") {
		// What the shell of the script adds itself.
		if name, _, _ := strings.Cut(kv, "="); !slices.Contains([]string{"PWD", "OLDPWD", "SHLVL", "_"}, name) {
			r.Env = append(r.Env, kv)
		}
	}
	slices.Sort(r.Env)
	in, _ := os.ReadFile(filepath.Join(dir, "stdin"))
	r.Stdin = string(in)
	return r
}

// answers makes diskhook print or fail for the time of one test.
func answers(t *testing.T, file, content string) {
	t.Helper()
	path := filepath.Join(filepath.Dir(built.diskhook), file)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(path) })
}

const asLibvirt = "/etc/libvirt/hooks/qemu.d/50-diskhook"

// TestUnbound: at once, silent, and whatever is wrong.
func TestUnbound(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(root+"/etc/diskhook", 0o755), os.WriteFile(root+"/etc/diskhook/diskhook.toml", []byte("[[["), 0o644),
		os.MkdirAll(root+"/var/lib/diskhook", 0o755), os.WriteFile(root+"/var/lib/diskhook/receipts", nil, 0)); err != nil {
		t.Fatal(err)
	}
	env := []string{"DISKHOOK_ROOT=" + root, "DISKHOOK_PROGRAM=/nonexistent"}
	for _, op := range []string{"prepare", "start", "started", "stopped", "release", "migrate", "restore", "reconnect", "attach", "something-new", "", "--help"} {
		for _, name := range []string{"vm", "-rf", "--version", "../x", "a\nb", "", "urn:diskhook:1"} {
			for what, xml := range map[string]string{"plain": plain, "empty": "", "broken": "<<<\x00\xff", "hostile uuid": "<uuid>../../../../etc</uuid>", "no end": "<uuid>"} {
				if name != "vm" && what != "plain" {
					continue
				}
				r := run(t, built.steered, asLibvirt, env, xml, name, op, "begin", "-")
				if diff := cmp.Diff(result{}, r); diff != "" {
					t.Errorf("%s %q %s: %s", op, name, what, diff)
				}
			}
		}
	}
	for _, argv := range [][]string{
		{"/usr/libexec/vdsm/hooks/before_vm_start/50_diskhook"}, {"/usr/libexec/vdsm/hooks/after_vm_start/50_diskhook"},
		{"qemu-hook"}, {""}, {"qemu-hook", "before_vm_start"}, {"qemu-hook", "nonsense"}, {"qemu-hook", "-rf"}, {"qemu-hook", "vm", "prepare"},
	} {
		r := run(t, built.steered, argv[0], append(env, "vmId="+uuid, "_hook_domxml=/nonexistent", "PATH=/x"), "", argv[1:]...)
		if diff := cmp.Diff(result{}, r); diff != "" {
			t.Errorf("%q: %s", argv, diff)
		}
	}
}

func TestHuge(t *testing.T) {
	blank := strings.Repeat(" ", 16<<20)
	if r := run(t, built.installed, asLibvirt, nil, plain+blank, "vm", "prepare", "begin", "-"); r.Code != 0 || r.Called || r.Stderr != "" {
		t.Errorf("unbound and huge: %+v", r)
	}
	// The mark lies across the place where reading stops to keep.
	for _, cut := range []int{1, 7, 14, 15, 22, 5000} {
		mark := marks[cut%len(marks)]
		xml := plain + blank[:16<<20+1-len(plain)-cut] + mark + blank[:100_000]
		r := run(t, built.installed, asLibvirt, nil, xml, "vm", "prepare", "begin", "-")
		if r.Code != 1 || r.Called || !strings.Contains(r.Stderr, "16 MiB") || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("bound and huge, cut %d: code %d, %q", cut, r.Code, r.Stderr)
		}
		if r := run(t, built.installed, asLibvirt, nil, xml, "vm", "reconnect", "begin", "-"); r.Code != 0 {
			t.Errorf("reconnect: code %d", r.Code)
		}
	}
	fits := bound + blank[:16<<20-len(bound)]
	if r := run(t, built.installed, asLibvirt, nil, fits, "vm", "prepare", "begin", "-"); r.Code != 0 || r.Stdin != fits {
		t.Errorf("16 MiB: code %d, %d bytes handed over", r.Code, len(r.Stdin))
	}
}

// TestHandOver: argv, environment and stdin of diskhook, and what comes back.
func TestHandOver(t *testing.T) {
	scrubbed := []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	hostile := []string{"PATH=/tmp/evil", "LD_PRELOAD=/tmp/evil.so", "DISKHOOK_ROOT=/tmp/evil", "DISKHOOK_PROGRAM=/tmp/evil", "DISKHOOK_TOOLS=/tmp/evil", "HOME=/root", "LC_ALL=tr_TR", "localdisk=lvm", "vmId=x"}
	for _, name := range []string{"vm", "-rf", "--help", "../x", "a\nb", "", "a b 'c' \"d\" $(e)"} {
		for _, op := range []string{"prepare", "start", "migrate", "restore", "reconnect", "release"} {
			r := run(t, built.installed, asLibvirt, hostile, bound, name, op, "begin", "from snapshot")
			want := result{Called: true, Argv: []string{"hook", "run", "--", "libvirt", name, op, "begin", "from snapshot"}, Env: scrubbed, Stdin: bound}
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("%s %q: %s", op, name, diff)
			}
		}
	}
	for _, op := range []string{"started", "stopped", "attach", "something-new"} {
		if r := run(t, built.installed, asLibvirt, hostile, bound, "vm", op, "begin", "-"); r.Called || r.Code != 0 {
			t.Errorf("%s: %+v", op, r)
		}
	}
	t.Run("more arguments of a libvirt to come", func(t *testing.T) {
		r := run(t, built.installed, asLibvirt, nil, bound, "vm", "prepare", "begin", "-", "new")
		if diff := cmp.Diff([]string{"hook", "run", "--", "libvirt", "vm", "prepare", "begin", "-"}, r.Argv); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("filter", func(t *testing.T) {
		answers(t, "say", "<domain/>")
		if r := run(t, built.installed, asLibvirt, nil, bound, "vm", "restore", "begin", "-"); r.Stdout != "<domain/>" {
			t.Errorf("stdout %q", r.Stdout)
		}
	})
	t.Run("refusal", func(t *testing.T) {
		answers(t, "code", "1")
		if r := run(t, built.installed, asLibvirt, nil, bound, "vm", "prepare", "begin", "-"); r.Code != 1 || r.Stderr != "why it failed\n" {
			t.Errorf("%d %q", r.Code, r.Stderr)
		}
		for _, op := range []string{"reconnect", "release"} {
			if r := run(t, built.installed, asLibvirt, nil, bound, "vm", op, "begin", "-"); r.Code != 0 || !r.Called {
				t.Errorf("%s: %+v", op, r)
			}
		}
	})
}

func TestVDSM(t *testing.T) {
	file := filepath.Join(t.TempDir(), "domxml")
	if err := os.WriteFile(file, []byte(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	const in = "/usr/libexec/vdsm/hooks/"
	for _, point := range []string{"before_vm_start", "after_disk_prepare", "before_disk_hotplug", "after_disk_hotunplug", "before_vm_migrate_source", "after_vm_destroy", "before_vm_dehibernate", "after_vm_hibernate", "after_vm_dehibernate"} {
		for _, property := range []string{"localdisk=lvm", "diskhook=", "quorum=db", "volume=sda=v1"} {
			env := []string{"vmId=" + uuid, "_hook_domxml=" + file, "PATH=/tmp/evil", "LD_PRELOAD=x", "PYTHONPATH=/y", "DISKHOOK_ROOT=/tmp/evil", "GODEBUG=x=1", property}
			r := run(t, built.installed, in+point+"/50_diskhook", env, "ignored")
			want := result{Called: true, Argv: []string{"hook", "run", "--", "vdsm", point}, Env: []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "_hook_domxml=" + file, property, "vmId=" + uuid}}
			slices.Sort(want.Env)
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("%s %s: %s", point, property, diff)
			}
			if byArgument := run(t, built.installed, "qemu-hook", env, "", point); !cmp.Equal(want.Argv, byArgument.Argv) {
				t.Errorf("%s as argument: %q", point, byArgument.Argv)
			}
		}
	}
	env := []string{"vmId=" + uuid, "_hook_json=" + file, "localdisk=lvm"}
	if r := run(t, built.installed, in+"after_disk_prepare/x", env, ""); !slices.Contains(r.Env, "_hook_json="+file) {
		t.Errorf("env %q", r.Env)
	}
	if r := run(t, built.installed, in+"before_vm_start/x", []string{"vmId=" + uuid, "_hook_domxml=" + file}, ""); r.Called || r.Code != 0 {
		t.Errorf("unbound: %+v", r)
	}
	t.Run("metadata", func(t *testing.T) {
		marked := filepath.Join(t.TempDir(), "domxml")
		if err := os.WriteFile(marked, []byte(bound), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := run(t, built.installed, in+"before_vm_start/x", []string{"vmId=" + uuid, "_hook_domxml=" + marked}, ""); !r.Called {
			t.Errorf("%+v", r)
		}
	})
	t.Run("before VDSM starts", func(t *testing.T) {
		answers(t, "code", "1")
		if r := run(t, built.installed, in+"before_vdsm_start/x", nil, ""); r.Code != 0 || !r.Called {
			t.Errorf("%+v", r)
		}
	})
	t.Run("capabilities", func(t *testing.T) {
		env := []string{"_hook_json=/tmp/caps", "PATH=/tmp/evil", "LD_PRELOAD=x", "DISKHOOK_ROOT=/tmp/evil"}
		want := result{Called: true, Argv: []string{"hook", "run", "--", "vdsm", "after_get_caps"}, Env: []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "_hook_json=/tmp/caps"}}
		if diff := cmp.Diff(want, run(t, built.installed, in+"after_get_caps/50_diskhook", env, "ignored")); diff != "" {
			t.Error(diff)
		}
		answers(t, "code", "2")
		if r := run(t, built.installed, in+"after_get_caps/50_diskhook", env, ""); r.Code != 0 || !r.Called {
			t.Errorf("%+v", r)
		}
	})
	t.Run("refusal", func(t *testing.T) {
		answers(t, "code", "2")
		if r := run(t, built.installed, in+"before_vm_start/x", env, ""); r.Code != 2 {
			t.Errorf("%+v", r)
		}
	})
}

// TestReceipts: a domain that lost its binding is not let pass.
func TestReceipts(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(root+"/var/lib/diskhook/receipts/"+uuid, 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"DISKHOOK_ROOT=" + root}
	for name, xml := range map[string]string{"as printed": plain, "upper case": strings.Replace(plain, uuid, strings.ToUpper(uuid), 1), "blanks": strings.Replace(plain, uuid, "\n "+uuid+" ", 1)} {
		if r := run(t, built.steered, asLibvirt, env, xml, "vm", "prepare", "begin", "-"); !r.Called {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := run(t, built.steered, "/x/before_vm_start/y", append(env, "vmId="+uuid), ""); !r.Called {
		t.Errorf("%+v", r)
	}
	other := strings.Replace(plain, "69b6", "70b6", 1)
	if r := run(t, built.steered, asLibvirt, env, other, "vm", "prepare", "begin", "-"); r.Called {
		t.Errorf("another domain: %+v", r)
	}
	for _, id := range []string{"..", uuid + "/../" + uuid, "", "."} {
		if r := run(t, built.steered, "/x/before_vm_start/y", append(env, "vmId="+id), ""); r.Called || r.Code != 0 {
			t.Errorf("vmId %q: %+v", id, r)
		}
	}
}

// TestDiskhookMissing: bound domains are refused with one line, except where
// that would kill a running machine.
// A disk may name the link of a managed volume, and nothing else binds it.
func TestNamedVolume(t *testing.T) {
	for path, called := range map[string]bool{"/run/diskhook/volumes/v1": true, "/run/diskhook/disks/x/vda": false, "/dev/mapper/v1": false} {
		xml := strings.Replace(plain, "</domain>", "<devices><disk type='block'><source dev='"+path+"'/></disk></devices></domain>", 1)
		if r := run(t, built.installed, asLibvirt, nil, xml, "vm", "prepare", "begin", "-"); r.Called != called || r.Code != 0 {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

func TestDiskhookMissing(t *testing.T) {
	env := []string{"DISKHOOK_PROGRAM=/nonexistent/diskhook"}
	for op, code := range map[string]int{"prepare": 1, "start": 1, "migrate": 1, "restore": 1, "reconnect": 0, "release": 0, "started": 0, "stopped": 0, "new": 0} {
		r := run(t, built.steered, asLibvirt, env, bound, "vm\nx", op, "begin", "-")
		if r.Code != code || r.Stdout != "" || strings.Count(r.Stderr, "\n") > 1 {
			t.Errorf("%s: %+v", op, r)
		}
		if code != 0 && (!strings.Contains(r.Stderr, "/nonexistent/diskhook") || !strings.Contains(r.Stderr, "install")) {
			t.Errorf("%s: %q", op, r.Stderr)
		}
	}
	r := run(t, built.steered, "/x/before_vm_start/y", append(env, "vmId="+uuid, "localdisk=lvm"), "")
	if r.Code != 2 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("VDSM: %+v", r)
	}
	for _, point := range []string{"before_vdsm_start", "after_get_caps"} {
		if r := run(t, built.steered, "/x/"+point+"/y", env, ""); r.Code != 0 || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%s: %+v", point, r)
		}
	}
}

func TestVersion(t *testing.T) {
	if r := run(t, built.installed, "qemu-hook", nil, "", "--help"); !strings.HasSuffix(r.Stdout, "; see man qemu-hook\n") || r.Code != 0 {
		t.Errorf("--help: %+v", r)
	}
	if r := run(t, built.installed, "qemu-hook", nil, "", "--version"); r.Stdout != "qemu-hook 1.2.3\n" || r.Code != 0 {
		t.Errorf("%+v", r)
	}
}

// TestBare holds the imports to what a fast start can pay for. Nothing of
// storage may be among them, nor fmt, nor anything that starts goroutines or
// fills maps before main.
func TestBare(t *testing.T) {
	for _, tags := range []string{"", "testroot"} {
		out, err := exec.Command("go", "list", "-deps", "-tags", tags, "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Fields(string(out))
		if diff := cmp.Diff([]string{"golang.org/x/sys/unix", "diskhook/cmd/qemu-hook"}, got); diff != "" {
			t.Error(diff)
		}
		out, err = exec.Command("go", "list", "-deps", "-tags", tags, "-f", "{{if .Standard}}{{.ImportPath}}{{end}}", ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(string(out)) {
			if slices.Contains([]string{"fmt", "net", "os/exec", "os/user", "regexp", "log", "log/slog", "context", "encoding/json", "encoding/xml", "flag", "compress/gzip"}, name) {
				t.Errorf("imports %s", name)
			}
		}
	}
	linked, err := exec.Command("go", "version", "-m", built.installed).Output()
	if err != nil || !strings.Contains(string(linked), "CGO_ENABLED=0") {
		t.Errorf("not static: %v %s", err, linked)
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
