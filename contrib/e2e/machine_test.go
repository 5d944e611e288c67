// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// machine is the guest, seen from inside, as root.
type machine struct{ *testing.T }

// scenario runs one scenario. The next runs in any case.
func (m machine) scenario(name string, do func(machine)) {
	m.Run(name, func(t *testing.T) { do(machine{t}) })
}

func (m machine) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// run runs a program that must succeed and returns what it prints, without the
// white space around it.
func (m machine) run(name string, args ...string) string {
	m.Helper()
	return strings.TrimSpace(command(m.T, name, args...))
}

// result is how a program ended.
type result struct {
	code   int
	output string // both streams
	took   time.Duration
}

// patience ends what hangs, and an answer that takes hanging is late for another
// reason than the guest, which is emulated, maybe beside other work.
const (
	patience = 10 * time.Minute
	hanging  = 9 * time.Minute
)

// try runs a program that may fail. stdin may be "".
func (m machine) try(stdin, name string, args ...string) result {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	from := time.Now()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		m.Fatalf("%s %q: %v", name, args, err)
	}
	return result{cmd.ProcessState.ExitCode(), string(out), time.Since(from)}
}

// refused wants exit code code and all words in what an operator reads.
func (m machine) refused(r result, code int, words ...string) {
	m.Helper()
	if r.code != code {
		m.Errorf("exit code %d, want %d: %s", r.code, code, r.output)
	}
	for _, word := range words {
		if !strings.Contains(r.output, word) {
			m.Errorf("the message lacks %q: %s", word, r.output)
		}
	}
}

// within waits until what becomes true.
func (m machine) within(what string, is func() bool) {
	m.Helper()
	for until := time.Now().Add(patience); !is(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(until) {
			m.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func (m machine) write(path, content string, mode os.FileMode) {
	m.Helper()
	m.must(os.MkdirAll(filepath.Dir(path), 0o755))
	m.must(os.WriteFile(path, []byte(content), mode))
	m.must(os.Chmod(path, mode))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// install lays diskhook out as a package does and makes what a host has once:
// the volume group on /dev/vdb, the thin pool, the images.
func (m machine) install() {
	m.Helper()
	m.run("cp", "-a", "--no-preserve=ownership", "root/.", "/")
	m.configure(nil)
	m.run("systemd-tmpfiles", "--create")
	m.run("udevadm", "control", "--reload")
	if exists("images") {
		m.run("vgcreate", "ovirt-local", "/dev/vdb")
		m.run("lvcreate", "-y", "-n", "pool0", "--type", "thin-pool", "-L", "160m", "ovirt-local")
		m.run("mkdir", "-p", export)
		m.run("cp", "-a", "images/.", export)
		m.write("/etc/nfs.conf.d/short.conf", "[nfsd]\ngrace-time=10\nlease-time=10\n", 0o644)
	}
	m.run("sync")
}

// configure writes the configuration: what the small disks of a test need, and
// on top of it values by "section.key".
func (m machine) configure(change map[string]string) {
	m.Helper()
	values := map[string]string{
		"local.reserve": `"4MiB"`, "local.deadline": `"9m"`, "local.cache": `"off"`, "lvm.timeout": `"5m"`, "paths.roots": `["/mnt", "/rhev/data-center"]`,
	}
	maps.Copy(values, change)
	text, section := "", ""
	for _, name := range slices.Sorted(maps.Keys(values)) {
		in, key, _ := strings.Cut(name, ".")
		if in != section {
			text += "[" + in + "]\n"
			section = in
		}
		text += key + " = " + values[name] + "\n"
	}
	m.write("/etc/diskhook/diskhook.toml", text, 0o644)
}

// configured changes the configuration for the rest of the scenario.
func (m machine) configured(change map[string]string) {
	m.configure(change)
	m.Cleanup(func() { m.configure(nil) })
}

// The shared storage: a directory that this machine exports to itself.
const (
	export = "/srv/export"
	shared = "/mnt/nfs"
)

// mountShared exports the images and mounts them.
func (m machine) mountShared(options, at string) {
	m.Helper()
	// A lease lets a client open a file without asking the server, and so hides
	// that the server is away.
	m.must(os.WriteFile("/proc/sys/fs/leases-enable", []byte("0"), 0))
	m.run("systemctl", "start", "nfs-server")
	m.run("exportfs", "-o", "rw,insecure,fsid=0,"+options, "127.0.0.1:"+export)
	m.run("mkdir", "-p", at)
	m.run("mount", "-t", "nfs4", "-o", "timeo=50,retrans=1", "127.0.0.1:/", at)
	// A shutdown stops the server first and then waits for it in vain.
	m.finally("umount", "-f", "-l", at)
}

// finally runs a program after the scenario, whatever became of it.
func (m machine) finally(name string, args ...string) {
	m.Cleanup(func() {
		ctx := context.WithoutCancel(m.Context())
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			m.Errorf("%s %q: %v: %s", name, args, err, out)
		}
	})
}

// cutPower never returns. A boot that has failed so far ends in order instead,
// which is not how it should.
func (m machine) cutPower() {
	if m.Failed() {
		return
	}
	m.run("powercut")
}

// lvm commands that ran while do did, of those that name the volume group.
func (m machine) lvmCommands(do func()) []string {
	m.Helper()
	const log = "/run/lvm-commands"
	// In the place of the program itself, for diskhook searches no PATH of ours.
	m.run("mv", "/usr/sbin/lvm", "/usr/sbin/lvm.real")
	defer m.run("mv", "/usr/sbin/lvm.real", "/usr/sbin/lvm")
	m.write("/usr/sbin/lvm", "#!/bin/bash\nprintf '%s\\n' \"${0##*/} $*\" >>"+log+"\nexec -a \"${0##*/}\" /usr/sbin/lvm.real \"$@\"\n", 0o755)
	m.write(log, "", 0o644)
	do()
	text, err := os.ReadFile(log)
	m.must(err)
	var commands []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "ovirt-local") {
			commands = append(commands, strings.TrimSpace(line))
		}
	}
	return commands
}

// lv returns fields of a volume, by lvs -o.
func (m machine) lv(name string, fields ...string) []string {
	m.Helper()
	line := m.run("lvs", "--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "-o", strings.Join(fields, ","), "ovirt-local/"+name)
	values := strings.Split(strings.TrimSpace(line), "|")
	if len(values) != len(fields) {
		m.Fatalf("lv %s: %v: %q", name, fields, line)
	}
	return values
}

// deactivate deactivates a volume that was written to: udev opens it after that.
func (m machine) deactivate(name string) {
	m.Helper()
	m.run("udevadm", "settle")
	m.run("lvchange", "-an", "ovirt-local/"+name)
}

// volumes are the names and UUIDs of all volumes: what changed can be told by
// comparing two.
func (m machine) volumes() string {
	m.Helper()
	return m.run("lvs", "--noheadings", "-o", "lv_name,lv_uuid,lv_tags,lv_size", "ovirt-local")
}

// unchanged wants that do makes, removes and changes no volume.
func (m machine) unchanged(do func()) {
	m.Helper()
	before := m.volumes()
	do()
	if after := m.volumes(); after != before {
		m.Errorf("volumes before:\n%s\nafter:\n%s", before, after)
	}
}

// bytesAre wants every byte of a device in [from, to) to be b; to 0 is its end.
func (m machine) bytesAre(path string, from, to int64, b byte) {
	m.Helper()
	f, err := os.Open(path)
	m.must(err)
	defer f.Close()
	if to == 0 {
		to, err = f.Seek(0, 2)
		m.must(err)
	}
	if to <= from {
		m.Fatalf("%s: nothing between %d and %d", path, from, to)
	}
	part := make([]byte, to-from)
	_, err = f.ReadAt(part, from)
	m.must(err)
	for i, got := range part {
		if got != b {
			m.Fatalf("%s: byte %d is %#x, want %#x", path, from+int64(i), got, b)
		}
	}
}

// reads wants the pattern b in 64 KiB at offset.
func (m machine) reads(path string, b byte, offset int64) {
	m.Helper()
	m.bytesAre(path, offset, offset+64<<10, b)
}

// writes is a guest's write of 64 KiB at offset.
func (m machine) writes(path string, b byte, offset int64) {
	m.Helper()
	m.run("qemu-io", "-f", "raw", "-t", "none", "-c", fmt.Sprintf("write -P %d %d 64k", b, offset), path)
}
