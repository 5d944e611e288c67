// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"diskhook/storage/progress"
)

// cached is the configuration in which templates are kept.
func (m machine) cached(change map[string]string) {
	m.Helper()
	// All at once wait long for each other's LVM commands under emulation.
	values := map[string]string{"local.cache": `"auto"`, "local.deadline": `"30m"`, "lvm.timeout": `"5m"`}
	for key, value := range change {
		values[key] = value
	}
	m.configured(values)
}

// overlaid is a domain whose disk has an image of its own on the lowest image
// of a chain.
func (m machine) overlaid(name, chain string, b byte) domain {
	m.Helper()
	dir := filepath.Join(shared, name)
	m.must(os.MkdirAll(dir, 0o755))
	top := filepath.Join(dir, "top.qcow2")
	if !exists(top) {
		m.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../"+chain+"/base.qcow2", "-F", "qcow2", top)
		m.run("qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P %d 1M 128k", b), "-c", "write -q -z 3M 128k", top)
	}
	return m.bind(named(name, disk{"vda", "lvmthin", name}))
}

// templateVolumes are the names of the templates in the volume group.
func (m machine) templateVolumes() []string {
	m.Helper()
	return strings.Fields(m.run("lvs", "--noheadings", "-o", "lv_name", "-S", `lv_name=~"^dhbase_"`, "ovirt-local"))
}

// counted is how many of the commands have all the words.
func counted(ran []string, words ...string) (n int) {
	for _, line := range ran {
		has := true
		for _, word := range words {
			has = has && strings.Contains(line, word)
		}
		if has {
			n++
		}
	}
	return n
}

func numbered(i int) string { return fmt.Sprintf("vm%02d", i) }

// startsAtOnce of domains with one base copy the base once. Who copies it is
// stopped until all the others wait for it.
func startsAtOnce(m machine) {
	m.cached(map[string]string{"local.rate": `"128KiB"`})
	const count = 6 // emulated; twenty are tried against a fake lvm
	domains := make([]domain, count)
	for i := range domains {
		domains[i] = m.overlaid(numbered(i), "golden", byte(100+i))
	}
	ran := m.lvmCommands(func() {
		var all sync.WaitGroup
		for i, d := range domains {
			hook := m.hookCommand(d, "prepare", "begin")
			all.Go(func() {
				if out, err := hook.CombinedOutput(); err != nil {
					m.Errorf("%s: %v: %s", d.name, err, out)
				}
			})
			// One processor that is emulated does not start that many units in time.
			m.within(d.name+" waits for its template", func() bool { return waitsForTemplate(d.id) })
			if i == 0 {
				m.within("the template is being made", func() bool { return copied(d.id, "vda") > 0 })
				m.must(syscall.Kill(m.copier(d), syscall.SIGSTOP))
			}
		}
		m.must(syscall.Kill(m.copier(domains[0]), syscall.SIGCONT))
		all.Wait()
	})
	for what, n := range map[string]struct{ got, want int }{
		"templates":           {counted(ran, "lvcreate", "-n dhbase_"), 1},
		"finished templates":  {counted(ran, "lvchange", "--deltag UPDATING", "/dhbase_"), 1},
		"clones":              {counted(ran, "lvcreate", "-s ", "/dhbase_"), count},
		"volumes made in all": {counted(ran, "lvcreate"), count + 1},
	} {
		if n.got != n.want {
			m.Errorf("%s: %d, want %d", what, n.got, n.want)
		}
	}
	for _, d := range domains {
		m.same(d)
	}
	found := m.templateVolumes()
	if len(found) != 1 {
		m.Fatalf("templates %v", found)
	}
	if lv := m.lv(found[0], "lv_permissions", "lv_active", "lv_skip_activation", "lv_tags"); lv[0] != "read-only" || lv[1] != "" || lv[2] != "skip activation" || strings.Contains(lv[3], "UPDATING") {
		m.Errorf("template %q", lv)
	}
	if lv := m.lv(domains[3].copyName("vda"), "origin", "lv_permissions", "lv_skip_activation", "lv_size"); lv[0] != found[0] || lv[1] != "writeable" || lv[2] != "skip activation" || lv[3] != strconv.Itoa(28<<20) {
		m.Errorf("clone %q", lv)
	}
	if list := m.run("diskhook", "local", "list"); strings.Contains(list, "dhbase_") || strings.Count(list, " ready ") != count {
		m.Errorf("listed:\n%s", list)
	}
	// What a guest writes is its own.
	m.writes(domains[0].link("vda"), 0x77, 1<<20)
	m.same(domains[1])
	for _, d := range domains {
		m.stopped(d)
	}
	m.unchanged(func() { m.started(domains[0]) })
	m.reads(domains[0].link("vda"), 0x77, 1<<20)
	m.stopped(domains[0])
}

// copier is the copy process of a domain's disk.
func (m machine) copier(d domain) int {
	m.Helper()
	st, err := progress.Read(filepath.Join("/run/diskhook/status", d.id, "vda.json"))
	m.must(err)
	if st.PID < 2 {
		m.Fatalf("pid %d", st.PID)
	}
	return st.PID
}

// waitsForTemplate is what the status of a domain's disk says.
func waitsForTemplate(domain string) bool {
	st, err := progress.Read(filepath.Join("/run/diskhook/status", domain, "vda.json"))
	return err == nil && strings.Contains(st.Note, "the template of its base")
}

// filled makes the pool's data fuller than its metadata, so that the first
// counts.
func (m machine) filled() {
	m.Helper()
	m.run("lvcreate", "-y", "-n", "filler", "-V", "64m", "--thinpool", "pool0", "ovirt-local")
	m.run("dd", "if=/dev/urandom", "of=/dev/ovirt-local/filler", "bs=1M", "count=64", "oflag=direct", "status=none")
}

// percent is how full the pool's data is.
func (m machine) percent() float64 {
	m.Helper()
	used, err := strconv.ParseFloat(m.lv("pool0", "data_percent")[0], 64)
	m.must(err)
	return used
}

func aboveWatermark(m machine) {
	d := m.overlaid("late", "golden", 0x61)
	m.cached(map[string]string{"local.pool_reserve": strconv.Itoa(101 - int(m.percent()))})
	m.unchanged(func() { m.vetoed(d, "disk vda", "lv ovirt-local/pool0", "full", "lvextend") })
	m.nothingLeft(d, "vda")
	m.cached(nil)
	m.started(d)
	m.same(d)
	m.stopped(d)
}

// roomIsMade: a template that nobody needs goes before a start is refused, and
// one that has clones does not.
func roomIsMade(m machine) {
	m.cached(nil)
	golden := m.templateVolumes()
	before := m.percent()
	gone := m.overlaid("gone", "two", 0x62)
	m.started(gone)
	m.same(gone)
	m.stopped(gone)
	m.run("diskhook", "local", "remove", "--discard-guest-data", gone.id, "vda")
	after := m.percent()
	if found := m.templateVolumes(); len(found) != 2 || after < before+2 {
		m.Fatalf("templates %v; the pool was %v %% full, now %v", found, before, after)
	}
	d := m.overlaid("tight", "golden", 0x63)
	m.cached(map[string]string{"local.pool_reserve": strconv.Itoa(101 - int(after))})
	m.started(d)
	m.same(d)
	m.stopped(d)
	if found := m.templateVolumes(); len(found) != 1 || found[0] != golden[0] {
		m.Errorf("templates %v, want %v", found, golden)
	}
}

// cutInTemplate ends with the middle of a template.
func cutInTemplate(m machine) {
	d := m.overlaid("cut", "slow", 0x64)
	// Not configured: there is no end of the scenario to undo it in.
	m.configure(map[string]string{"local.cache": `"auto"`, "local.rate": `"256KiB"`, "local.deadline": `"20s"`})
	m.vetoed(d, "disk vda", "the template of its base", "slow/base.qcow2", " %", "the copy goes on")
	m.within("the template is at some megabytes", func() bool { return copied("templates", m.unfinished()) > 6<<20 })
}

// unfinished is the template that is not ready.
func (m machine) unfinished() string {
	m.Helper()
	found := strings.Fields(m.run("lvs", "--noheadings", "-o", "lv_name", "-S", `lv_name=~"^dhbase_" && lv_tags={UPDATING}`, "ovirt-local"))
	if len(found) != 1 {
		m.Fatalf("unfinished templates: %v", found)
	}
	return found[0]
}

// templatesAfterPowerCut goes on with the template, whoever asks for it.
func templatesAfterPowerCut(m machine) {
	m.install()
	m.mountShared("no_root_squash", shared)
	m.scenario("go on", func(m machine) {
		m.cached(nil)
		name := m.unfinished()
		before := m.lv(name, "lv_uuid")[0]
		if !exists("/var/lib/diskhook/cursors/" + before) {
			m.Error("nothing tells how far it was")
		}
		other := m.overlaid("other", "slow", 0x65)
		m.started(other)
		m.same(other)
		if lv := m.lv(name, "lv_uuid", "lv_tags"); lv[0] != before || strings.Contains(lv[1], "UPDATING") {
			m.Errorf("template %v, was %s", lv, before)
		}
		d := m.bind(named("cut", disk{"vda", "lvmthin", "cut"}))
		ran := m.lvmCommands(func() { m.started(d) })
		if counted(ran, "lvcreate") != 1 || counted(ran, "lvcreate", "-s ", "/"+name) != 1 {
			m.Errorf("ran:\n%s", strings.Join(ran, "\n"))
		}
		m.same(d)
		m.stopped(d)
		m.stopped(other)
		if exists("/var/lib/diskhook/cursors/" + before) {
			m.Error("its cursor is left")
		}
	})
	m.scenario("a clone of before", func(m machine) {
		m.cached(nil)
		d := named(numbered(0), disk{"vda", "lvmthin", numbered(0)})
		m.unchanged(func() { m.started(d) })
		m.reads(d.link("vda"), 0x77, 1<<20)
		m.stopped(d)
	})
}
