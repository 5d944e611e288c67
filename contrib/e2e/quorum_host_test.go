// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"diskhook/storage/quorum"
)

// TestQuorumHost is a host with a replica set on volumes and on an NFS server,
// served by the unit that is installed. The guest's QEMU is qemu-io here, which
// waits for its disk to come back as that does.
func TestQuorumHost(t *testing.T) {
	host{
		install: "install",
		images:  []chain{{name: "one", seed: 10}},
		boots: []boot{
			{"replicas", replicas, powerCut},
			{"after the power cut", replicasAfterPowerCut, inOrder},
		},
	}.run(t)
}

// voting is the domain whose disk is the set, three volumes of the group and a
// file on the server. Of four, three must agree: so many are left to outvote
// each other after a power cut while the file is away.
func voting() domain { return named("voting", disk{"vda", "", "one"}) }

const (
	set  = "db"
	unit = "diskhook-quorum@" + set + ".service"
)

// serverFile is the replica on the server.
var serverFile = filepath.Join(shared, "replicas", "db.raw")

// sets reads what the host keeps of its sets.
func sets() *quorum.Service { return &quorum.Service{} }

// quorumHost configures the host: a server that is silent for this long is away.
// A host under load may be slow for some seconds.
func (m machine) quorumHost() {
	m.Helper()
	m.configure(map[string]string{"paths.roots": `["/mnt", "/dev/ovirt-local"]`, "quorum.hang_timeout": `"30s"`})
}

func replicas(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.quorumHost()
	m.scenario("build", buildSet)
	m.scenario("unit", servedByUnit)
	m.scenario("killed", killedUnderLoad)
	m.scenario("server stops", serverOfReplicaStops)
	if m.Failed() {
		return // what is left prepares the power cut, which does not come
	}
	beforePowerCut(m)
	m.cutPower()
}

// buildSet makes the set on volumes full of somebody else's data.
func buildSet(m machine) {
	var paths []string
	for i := range 3 {
		name := fmt.Sprintf("db%d", i+1)
		m.run("lvcreate", "-y", "-Wy", "-n", name, "-L", "28m", "--addtag", "KEEP", "ovirt-local")
		paths = append(paths, "/dev/ovirt-local/"+name)
	}
	m.run("mkdir", "-p", filepath.Dir(serverFile))
	build := []string{
		"quorum", "build", "--replicas", strings.Join(append(paths, serverFile), ","), "--threshold", "3",
		"--from", filepath.Join(shared, "one/top.qcow2"),
	}
	m.refused(m.try("", "diskhook", append(slices.Clone(build), set)...), 4, "db1", "it is not empty", "--overwrite")
	m.run("diskhook", append(build, "--overwrite", set)...)
	m.equalReplicas(filepath.Join(shared, "one/top.qcow2"))

	def, err := sets().Load(set)
	m.must(err)
	for i := range 3 {
		tags := strings.Split(m.lv(fmt.Sprintf("db%d", i+1), "lv_tags")[0], ",")
		want := fmt.Sprintf("DH_QUORUM:%s:r%d:1:", def.UUID, i+1)
		if slices.Sort(tags); len(tags) != 2 || !strings.HasPrefix(tags[0], want) || tags[1] != "KEEP" {
			m.Errorf("tags %v, want %s… and KEEP", tags, want)
		}
	}
	if !exists(serverFile + ".quorum") {
		m.Error("the file has no mark beside it")
	}
	d := voting()
	m.write(d.file(), d.plain(), 0o600)
	m.write(d.file(), m.run("diskhook", "rewrite", "--quorum", "vda="+set, d.file()), 0o600)
}

// ofUnit is a property of the unit.
func (m machine) ofUnit(property string) string {
	m.Helper()
	return m.run("systemctl", "show", "--timestamp=us+utc", "--value", "-p", property, unit)
}

// servedByUnit: a start of the unit ends when the disk can be had, and not
// before; who starts a unit in vain is told.
func servedByUnit(m machine) {
	d := voting()
	m.started(d)
	m.within("the unit is active", func() bool { return m.ofUnit("ActiveState") == "active" })
	live := m.serving(0)
	if pid := m.ofUnit("MainPID"); pid != strconv.Itoa(live.PID) || m.ofUnit("Type") != "notify" || m.ofUnit("StartLimitBurst") != "100" {
		m.Errorf("main process %s, served by %d, type %s, at most %s starts", pid, live.PID, m.ofUnit("Type"), m.ofUnit("StartLimitBurst"))
	}
	m.notBeforeServed()
	m.guestDoes("write -P 0x21 16M 64k", "flush")

	m.run("systemctl", "stop", unit)
	if exists(quorum.SocketPath(sets().Layout, set)) {
		m.Error("the socket is still there")
	}
	for range 3 {
		m.run("systemctl", "restart", unit) // which waits
		m.guestDoes("read -P 0x21 16M 64k")
		m.notBeforeServed()
	}
	m.stopped(d)
	m.within("the unit ends", func() bool { return m.ofUnit("ActiveState") == "inactive" })
	m.equalReplicas("")

	// Nobody has claimed it: told, and not tried again.
	if r := m.try("", "systemctl", "start", unit); r.code == 0 {
		m.Errorf("a set without a domain is served: %s", r.output)
	}
	if state, again := m.ofUnit("ActiveState"), m.ofUnit("NRestarts"); state != "failed" || again != "0" {
		m.Errorf("the unit is %s after %s restarts", state, again)
	}
	m.run("systemctl", "reset-failed", unit)
	started := m.guest("read 0 4k")
	m.refused(started, 1, "No such file or directory")
}

// notBeforeServed wants systemd to have called the unit started after it had
// told that it serves. Both times are of the guest's one clock.
func (m machine) notBeforeServed() {
	m.Helper()
	const layout = "Mon 2006-01-02 15:04:05.000000 MST"
	active, err := time.Parse(layout, m.ofUnit("ActiveEnterTimestamp"))
	m.must(err)
	var served time.Time
	for _, e := range m.events() {
		if e.Event == quorum.EventServed {
			served = e.Time
		}
	}
	if served.IsZero() || active.Before(served.Truncate(time.Microsecond)) {
		m.Errorf("started at %v, serving from %v", active, served)
	}
}

func (m machine) events() []quorum.Event {
	m.Helper()
	events, err := sets().Events(set)
	m.must(err)
	return events
}

// noted is how often an event of a replica is in the log; "" is of none.
func (m machine) noted(event, replica string) (n int) {
	m.Helper()
	for _, e := range m.events() {
		if e.Event == event && e.Replica == replica {
			n++
		}
	}
	return n
}

// serving waits until the set is served, by another process than was.
func (m machine) serving(was int) quorum.Live {
	m.Helper()
	var live quorum.Live
	m.within("the set is served", func() bool {
		var err error
		live, err = sets().Live(set)
		return err == nil && live.State == quorum.Serving && live.PID != was && !live.Equalising
	})
	return live
}

// equalReplicas wants all replicas to have the same content, and that of the
// image at path, unless that is "".
func (m machine) equalReplicas(path string) {
	m.Helper()
	if out := m.run("diskhook", "quorum", "verify", set); !strings.Contains(out, "all replicas are equal") {
		m.Errorf("verify: %s", out)
	}
	def, err := sets().Load(set)
	m.must(err)
	pseudo := func(l quorum.Layer) string {
		driver := map[string]string{quorum.File: "file", quorum.Block: "host_device"}[l.Type]
		return fmt.Sprintf(`json:{"driver":"raw","size":%d,"file":{"driver":%q,"filename":%q}}`, oddSize, driver, l.Path)
	}
	first := pseudo(def.Replicas[0].Top())
	for _, r := range def.Replicas[1:] {
		m.run("qemu-img", "compare", "-q", first, pseudo(r.Top()))
	}
	if path != "" {
		m.run("qemu-img", "compare", "-q", first, path)
	}
}
