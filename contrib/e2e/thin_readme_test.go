// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestThinReadme has three hosts do what README.md says, line by line: from a bare LUN
// to a running VM.
func TestThinReadme(t *testing.T) {
	lines := readmeLines(t)
	l := lab{hosts: map[string][]labBoot{}, also: []string{readme()}, lun: 2 << 30}
	for _, h := range []string{"h1", "h2", "h3"} {
		l.hosts[h] = []labBoot{{h, func(m labMachine) { m.follow(lines) }, powerCut}}
		l.notices = append(l.notices, over(h))
		for i := range lines {
			l.notices = append(l.notices, done(i, h))
		}
	}
	l.run(t)
}

// readme is the file, which guests have beside the program.
func readme() string {
	if os.Getenv(stepVariable) != "" {
		return "README.md"
	}
	return "../../README.md"
}

// readmeLine is a command and the hosts that run it: one, or all.
type readmeLine struct {
	on      string
	command string
}

func (l readmeLine) isFor(host string) bool { return l.on == host || l.on == "h*" }

// readmeLines are the commands at the beginning of the section on thin clusters.
func readmeLines(t *testing.T) (lines []readmeLine) {
	t.Helper()
	text, err := os.ReadFile(readme())
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Thin clusters\n")
	_, block, _ := strings.Cut(section, "\n```console\n")
	block, _, found := strings.Cut(block, "```")
	for line := range strings.Lines(block) {
		host, command, ok := strings.Cut(strings.TrimSpace(line), "# ")
		if !ok || len(host) != 2 {
			t.Fatalf("%s: no command of a host: %q", readme(), line)
		}
		lines = append(lines, readmeLine{host, command})
	}
	if !found || len(lines) != 10 {
		t.Fatalf("%s: %d commands in the section on thin clusters, want 10", readme(), len(lines))
	}
	return lines
}

func done(line int, host string) string { return fmt.Sprintf("line %d is done by %s", line+1, host) }

func over(host string) string { return host + " is done" }

// outbox is where scp leaves what it sends, below the name of the host that is to have
// it: no two guests have a network.
const outbox = "/run/outbox"

const scp = `#!/bin/bash
set -euo pipefail
to=` + outbox + `/${2%%:*}${2#*:}
mkdir -p "$(dirname "$to.")"
cp -- "$1" "$to"
`

// follow runs this host's lines, each when those before it are done everywhere.
func (m labMachine) follow(lines []readmeLine) {
	m.write("/usr/local/bin/scp", scp, 0o755)
	m.write("/etc/udev/rules.d/60-lun.rules", `KERNEL=="vdb", SYMLINK+="mapper/lun"`+"\n", 0o644)
	m.run("udevadm", "control", "--reload")
	m.run("udevadm", "trigger", "--settle", "/sys/class/block/vdb")
	m.run("systemctl", "start", "libvirtd")
	const node = "/dev/vm1" // in the place of the volume's device, which is not below /dev
	m.write("vm1.xml", strings.ReplaceAll(named("vm1", disk{target: "vda", image: node}).plain(), node, "/run/diskhook/thin/san/vm1"), 0o600)
	for i, line := range lines {
		if line.isFor(m.name) {
			m.Logf("%s# %s", m.name, line.command)
			m.within("the master answers", func() bool { // it is emulated beside this host
				r := m.try("", "bash", "-euc", line.command)
				if r.code != 0 && r.code != 5 {
					m.Fatalf("%s# %s: %s", m.name, line.command, r.output)
				}
				return r.code == 0
			})
			m.tell(done(i, m.name), m.sent())
		}
		for host := range m.lab.hosts {
			if line.isFor(host) && host != m.name {
				m.receive(m.await(done(i, host)))
			}
		}
	}
	if m.name == "h2" {
		m.runsVM()
	}
	m.tell(over(m.name), "")
	for host := range m.lab.hosts {
		m.await(over(host))
	}
	m.cutPower()
}

// sent is what scp left, by host and path, and is there no more.
func (m labMachine) sent() string {
	m.Helper()
	all := map[string]map[string]string{}
	err := filepath.WalkDir(outbox, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		host, to, _ := strings.Cut(strings.TrimPrefix(path, outbox+"/"), "/")
		if all[host] == nil {
			all[host] = map[string]string{}
		}
		all[host]["/"+to] = string(text)
		return err
	})
	if !os.IsNotExist(err) {
		m.must(err)
	}
	m.must(os.RemoveAll(outbox))
	text, err := json.Marshal(all)
	m.must(err)
	return string(text)
}

// receive writes what is for this host, into directories that are there.
func (m labMachine) receive(text string) {
	m.Helper()
	var all map[string]map[string]string
	m.must(json.Unmarshal([]byte(text), &all))
	for path, content := range all[m.name] {
		m.must(os.WriteFile(path, []byte(content), 0o600))
	}
}

// runsVM wants the VM to run, and nobody to take its volume until it has ended.
func (m labMachine) runsVM() {
	m.Helper()
	if state := m.virsh("domstate", "vm1"); state != "running" {
		m.Errorf("the VM is %s", state)
	}
	m.refused(m.try("", "diskhook", "thin", "detach", "vm1"), 4, "volume vm1", "in use")
	m.virsh("destroy", "vm1")
	m.thin("detach", "vm1")
	m.thin("check")
}
