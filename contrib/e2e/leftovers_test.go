// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLeftovers is a host on which oVirt's own hook worked, and on which much
// was left behind: its volumes are taken over, and what no guest wrote to goes.
func TestLeftovers(t *testing.T) {
	host{
		install: "install",
		images:  []chain{{name: "one", seed: 10}, {name: "two", seed: 20}},
		boots: []boot{{"leftovers", func(m machine) {
			m.install()
			m.mountShared("no_root_squash", shared)
			m.scenario("adopt all", adoptAll)
			m.scenario("garbage", garbage)
			m.scenario("wiped", wiped)
		}, inOrder}},
	}.run(t)
}

// oldVolume makes a volume of n as oVirt's hook does, with a guest's data in it.
func (m machine) oldVolume(n int, more ...string) (name string) {
	m.Helper()
	name = fmt.Sprintf("1dfad482-c65c-436c-aa59-87e020b633%02d", n)
	args := []string{"-y", "-n", name, "--addtag", fmt.Sprintf("VM_69b6b942-b5bf-4740-bb95-6752ffbd3b%02d", n),
		"--addtag", fmt.Sprintf("IU_c9865ca8-f6d2-4363-bec2-af870a87a8%02d", n), "--addtag", "PU_00000000-0000-0000-0000-000000000000"}
	if !slices.Contains(more, "-V") {
		args = append(args, "-L", "8m")
	}
	m.run("lvcreate", append(append(args, more...), "ovirt-local")...)
	m.writes("/dev/ovirt-local/"+name, byte(n), 1<<20)
	return name
}

func adoptAll(m machine) {
	linear, thin := m.oldVolume(1), m.oldVolume(2, "-V", "8m", "--thinpool", "pool0")
	unfinished, open, stranger := m.oldVolume(3, "--addtag", "UPDATING"), m.oldVolume(4), m.oldVolume(5, "--addtag", "VM_elsewhere")
	for _, name := range []string{linear, thin, unfinished, stranger} {
		m.deactivate(name)
	}
	holder, err := os.Open("/dev/ovirt-local/" + open)
	m.must(err)
	defer holder.Close()
	m.unchanged(func() {
		r := m.try("", "diskhook", "local", "adopt", "--all", "-n")
		m.refused(r, 10, linear, "would adopt", "unfinished", "it is open", "do not name one VM")
	})
	before := map[string][]string{}
	for _, name := range []string{unfinished, open, stranger, "pool0"} {
		before[name] = m.lv(name, "lv_uuid", "lv_tags")
	}
	m.run("diskhook", "local", "adopt", "--all")
	for name, lv := range before {
		if after := m.lv(name, "lv_uuid", "lv_tags"); !slices.Equal(after, lv) {
			m.Errorf("%s was left alone, and is %v instead of %v", name, after, lv)
		}
	}
	for n, name := range []string{1: linear, 2: thin} {
		if name == "" {
			continue
		}
		lv := m.lv(name, "lv_uuid", "lv_tags")
		r := m.receipt(fmt.Sprintf("69b6b942-b5bf-4740-bb95-6752ffbd3b%02d", n), fmt.Sprintf("c9865ca8-f6d2-4363-bec2-af870a87a8%02d", n))
		if r == nil || !r.Used || r.Copy != lv[0] || !strings.Contains(lv[1], "DH_v1") || r.Backend != []string{1: "lvm", 2: "lvmthin"}[n] {
			m.Errorf("%s: tags %s, receipt %+v", name, lv[1], r)
		}
		m.run("lvchange", "-ay", "-K", "ovirt-local/"+name)
		m.reads("/dev/ovirt-local/"+name, byte(n), 1<<20)
		m.deactivate(name)
	}
	m.unchanged(func() { m.run("diskhook", "local", "adopt", "--all") })
}

// leftover makes a volume as a fill that was interrupted leaves it.
func (m machine) leftover(d domain, target string) {
	m.Helper()
	m.run("lvcreate", "-y", "-n", d.copyName(target), "-L", "8m", "--addtag", "UPDATING", "--addtag", "VM_"+d.id, "-ky", "-K", "-ay", "ovirt-local")
	m.deactivate(d.copyName(target))
}

// garbage comes after adoptAll, whose volumes are the guests'.
func garbage(m machine) {
	used := m.bind(named("used", disk{"vda", "lvm", "one"}, disk{"vdb", "lvmthin", "two"}))
	m.started(used)
	m.writes(used.link("vda"), 0x77, 3<<20)
	m.stopped(used)
	left := named("left", disk{"vda", "lvm", "one"}, disk{"vdb", "lvm", "one"}, disk{"vdc", "lvm", "one"})
	for _, disk := range left.disks {
		m.leftover(left, disk.target)
	}
	m.run("lvchange", "-ay", "-K", "ovirt-local/"+left.copyName("vdb"))
	holder, err := os.Open(left.node("vdb"))
	m.must(err)
	defer holder.Close()
	m.unchanged(func() {
		r := m.try("", "diskhook", "local", "gc")
		m.refused(r, 10, left.copyName("vda"), "no guest ever used it", "it is open, or may be", "writes live in it")
	})
	before := strings.Fields(m.run("lvs", "--noheadings", "-o", "lv_name", "ovirt-local"))
	// As somebody who fills vdc would.
	locked := []string{"/run/diskhook/lock/local-" + left.id + "-vdc", "diskhook", "local", "gc", "--yes"}
	m.run("flock", locked...)
	after := strings.Fields(m.run("lvs", "--noheadings", "-o", "lv_name", "ovirt-local"))
	gone := slices.DeleteFunc(before, func(name string) bool { return slices.Contains(after, name) })
	slices.Sort(gone)
	// That of oVirt's hook is unfinished, too.
	if want := []string{"1dfad482-c65c-436c-aa59-87e020b63303", left.copyName("vda")}; !slices.Equal(gone, want) {
		m.Errorf("gone: %v, want %v", gone, want)
	}
	m.must(holder.Close())
	m.deactivate(left.copyName("vdb"))
	m.run("diskhook", "local", "gc", "--yes")
	if rest := m.run("lvs", "--noheadings", "-o", "lv_name", "-S", "lv_tags=UPDATING", "ovirt-local"); rest != "" {
		m.Errorf("left: %s", rest)
	}
	m.started(used)
	m.reads(used.link("vda"), 0x77, 3<<20)
	m.stopped(used)
}

// wiped: what lay in a leftover cannot be read by who gets its extents.
func wiped(m machine) {
	d := named("wiped", disk{"vda", "lvm", "one"})
	for _, how := range []string{"none", "zero"} {
		m.leftover(d, "vda")
		m.run("lvchange", "-ay", "-K", "ovirt-local/"+d.copyName("vda"))
		m.run("qemu-io", "-f", "raw", "-t", "none", "-c", "write -q -P 0x42 0 8M", d.node("vda"))
		m.deactivate(d.copyName("vda"))
		segment := m.lv(d.copyName("vda"), "seg_pe_ranges")[0]
		m.run("diskhook", "local", "gc", "--yes", "--wipe", how)
		// -Wn -Zn: the next volume gets the extents as they are.
		m.run("lvcreate", "-y", "-Wn", "-Zn", "-n", "next", "-L", "8m", "ovirt-local")
		if got := m.lv("next", "seg_pe_ranges")[0]; got != segment {
			m.Fatalf("the next volume is at %s, the copy was at %s", got, segment)
		}
		m.bytesAre("/dev/ovirt-local/next", 0, 8<<20, map[string]byte{"none": 0x42, "zero": 0}[how])
		m.run("lvremove", "-y", "ovirt-local/next")
	}
}
