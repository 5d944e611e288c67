// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// web has one disk of each kind of volume. Later scenarios find it ready.
func web() domain {
	return named("web", disk{"vda", "lvm", "one"}, disk{"vdb", "lvmthin", "two"})
}

// firstStart makes copies on volumes full of somebody else's data.
func firstStart(m machine) {
	d := m.bind(web())
	m.run("lvcreate", "-y", "-Wy", "-n", "bystander", "-L", "4m", "ovirt-local")
	before := m.lv("bystander", "lv_uuid", "lv_tags", "lv_attr")
	m.bytesAre("/dev/ovirt-local/bystander", 4096, 0, 0xaa) // else the tails prove nothing
	m.started(d)
	m.same(d)

	machineID := m.run("cat", "/etc/machine-id")
	for _, disk := range d.disks {
		if to, err := os.Readlink(d.link(disk.target)); err != nil || to != d.node(disk.target) {
			m.Errorf("%s leads to %s, %v", d.link(disk.target), to, err)
		}
		lv := m.lv(d.copyName(disk.target), "lv_tags", "lv_skip_activation", "lv_size", "lv_uuid")
		tags := strings.Split(lv[0], ",")
		want := []string{
			"DH_machine_" + machineID, "DH_target_" + disk.target, "DH_v1",
			"PU_00000000-0000-0000-0000-000000000000", "VM_" + d.id,
		}
		if slices.Sort(tags); !slices.Equal(tags, want) {
			m.Errorf("tags %v, want %v", tags, want)
		}
		if lv[1] != "skip activation" || lv[2] != strconv.Itoa(28<<20) {
			m.Errorf("disk %s: %v", disk.target, lv)
		}
		r := m.receipt(d.id, disk.target)
		if r == nil || r.Copy != lv[3] || !r.Used || r.Size != oddSize || r.Machine != machineID || len(r.Source) != 3 {
			m.Errorf("disk %s: receipt %+v", disk.target, r)
		}
	}
	used, err := strconv.ParseFloat(m.lv(d.copyName("vdb"), "data_percent")[0], 64)
	if err != nil || used <= 0 || used > 25 {
		m.Errorf("the thin copy takes %v %% of its size, %v", used, err)
	}
	if after := m.lv("bystander", "lv_uuid", "lv_tags", "lv_attr"); !slices.Equal(after, before) {
		m.Errorf("another volume: %v, was %v", after, before)
	}
	if out := m.run("sh", "-c", "qemu-img info "+shared+"/one/top.qcow2 && ls "+filepath.Join(shared, "one")); !strings.Contains(out, "base.qcow2") {
		m.Errorf("the source: %s", out)
	}

	m.writes(d.link("vda"), 0x77, 3<<20)
	m.unchanged(func() { m.started(d) }) // again, as it runs
	m.stopped(d)
	m.unchanged(func() { m.started(d) })
	m.reads(d.link("vda"), 0x77, 3<<20)
	m.stopped(d)
}

// fourReady counts the LVM commands of a start that finds everything ready.
func fourReady(m machine) {
	d := m.bind(named("db",
		disk{"vda", "lvmthin", "one"}, disk{"vdb", "lvmthin", "two"}, disk{"vdc", "lvmthin", "three"}, disk{"vdd", "lvm", "four"}))
	m.started(d)
	m.same(d)
	m.stopped(d)
	ran := m.lvmCommands(func() { m.started(d) })
	if len(ran) == 0 || len(ran) > 2 {
		m.Errorf("%d LVM commands for four ready disks:\n%s", len(ran), strings.Join(ran, "\n"))
	}
	m.same(d)
	m.stopped(d)
	for _, disk := range d.disks {
		m.run("diskhook", "local", "remove", "--discard-guest-data", d.id, disk.target)
	}
}

// twoStarts of one domain at once both succeed and copy once.
func twoStarts(m machine) {
	d := m.bind(named("twin", disk{"vda", "lvm", "three"}))
	ran := m.lvmCommands(func() {
		var both sync.WaitGroup
		for range 2 {
			hook := m.hookCommand(d, "prepare", "begin")
			both.Go(func() {
				if out, err := hook.CombinedOutput(); err != nil {
					m.Errorf("%v: %s", err, out)
				}
			})
		}
		both.Wait()
	})
	made := 0
	for _, line := range ran {
		if strings.HasPrefix(line, "lvm lvcreate") {
			made++
		}
	}
	if made != 1 {
		m.Errorf("%d volumes were made:\n%s", made, strings.Join(ran, "\n"))
	}
	m.same(d)
	m.stopped(d)
}

// rate makes a copy of the image slow take twenty seconds.
const rate = `"1MiB"`

// hookKilled: a start's deadline passes, another start is killed, and the copy
// goes on without either.
func hookKilled(m machine) {
	d := m.bind(named("patient", disk{"vda", "lvmthin", "slow"}))
	m.configured(map[string]string{"local.rate": rate, "local.deadline": `"1s"`})
	first := m.vetoed(d, "disk vda", " %", "the copy goes on", "diskhook local status patient")
	m.answered("a start with a deadline of 1 s", first)
	m.within("the copy begins", func() bool { return copied(d.id, "vda") >= 0 })

	hook := m.hookCommand(d, "prepare", "begin")
	m.must(hook.Start())
	time.Sleep(time.Second / 2)
	_ = hook.Process.Kill()
	_ = hook.Wait()
	from := copied(d.id, "vda")
	m.within(fmt.Sprintf("the copy goes on from %d bytes", from), func() bool { return copied(d.id, "vda") > from })
	units := m.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "diskhook-copy-*")
	if !strings.Contains(units, "diskhook-copy-") || !strings.Contains(units, "patient") {
		m.Errorf("no unit copies: %q", units)
	}

	m.configure(nil)
	m.unchangedBut(d.copyName("vda"), func() { m.started(d) })
	m.same(d)
	m.stopped(d)
}

// unchangedBut wants the volume named to be the same one afterwards, though its
// tags may change.
func (m machine) unchangedBut(name string, do func()) {
	m.Helper()
	before := m.lv(name, "lv_uuid")[0]
	do()
	if after := m.lv(name, "lv_uuid")[0]; after != before {
		m.Errorf("volume %s was made again", name)
	}
}
