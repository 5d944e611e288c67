// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// flaky is a device-mapper device on another, of which parts fail when told to.
type flaky struct {
	name, below string
	size        int64 // bytes
}

func (f flaky) path() string { return "/dev/mapper/" + f.name }

// flakyStart is where it begins on the other, in sectors: so nobody finds on
// that what is on the flaky one.
const flakyStart = 2048

// flaky makes one that works.
func (m machine) flaky(name, below string, size int64) flaky {
	m.Helper()
	f := flaky{name, below, size}
	m.run("dmsetup", "create", name, "--table", f.linear(0, size))
	m.run("udevadm", "settle")
	m.finally("dmsetup", "remove", "--retry", name)
	return f
}

// linear is the line of a table for the bytes [from, to) that work.
func (f flaky) linear(from, to int64) string {
	return fmt.Sprintf("%d %d linear %s %d", from/512, (to-from)/512, f.below, from/512+flakyStart)
}

// fails has reads and writes of the bytes [from, to) end with an I/O error.
func (m machine) fails(f flaky, from, to int64) {
	m.Helper()
	var table []string
	if from > 0 {
		table = append(table, f.linear(0, from))
	}
	table = append(table, fmt.Sprintf("%d %d error", from/512, (to-from)/512))
	if to < f.size {
		table = append(table, f.linear(to, f.size))
	}
	m.table(f, table...)
}

// works repairs it.
func (m machine) works(f flaky) {
	m.Helper()
	m.table(f, f.linear(0, f.size))
}

func (m machine) table(f flaky, lines ...string) {
	m.Helper()
	m.run("sh", "-euc", `printf '%s\n' "$2" | dmsetup reload "$1"; dmsetup suspend --nolockfs "$1"; dmsetup resume "$1"`,
		"sh", f.name, strings.Join(lines, "\n"))
}

// memoryDisks are two disks in memory, of ramSize bytes.
func (m machine) memoryDisks() {
	m.Helper()
	m.run("modprobe", "brd", "rd_nr=2", fmt.Sprintf("rd_size=%d", ramSize>>10))
	m.finally("modprobe", "-r", "brd")
}

const (
	ramSize   = 100 << 20
	flakySize = ramSize - flakyStart*512
)

// segment is where the bytes of a volume of the group begin on its one disk;
// no name is where free space begins.
func (m machine) segment(group, name string) int64 {
	m.Helper()
	rows := m.run("pvs", "--noheadings", "--segments", "--separator", "|", "-o", "pvseg_start,pvseg_size,lv_name", "-S", "vg_name="+group)
	largest, at := int64(0), int64(-1)
	for row := range strings.Lines(rows) {
		column := strings.Split(strings.TrimSpace(row), "|")
		start, err := strconv.ParseInt(column[0], 10, 64)
		m.must(err)
		size, err := strconv.ParseInt(column[1], 10, 64)
		m.must(err)
		if strings.Trim(column[2], "[]") == name && size > largest {
			largest, at = size, start
		}
	}
	if at < 0 {
		m.Fatalf("no segment of %q in\n%s", name, rows)
	}
	return 1<<20 + at*(4<<20)
}

// targetFails: the disk below the volume group fails where the copy is being
// written, and then everywhere.
func targetFails(m machine) {
	m.memoryDisks()
	pv := m.flaky("brittle-disk", "/dev/ram0", flakySize)
	m.run("vgcreate", "brittle", pv.path())
	m.finally("vgremove", "-ff", "-y", "brittle")
	m.run("lvcreate", "-y", "-n", "pool0", "--type", "thin-pool", "-L", "40m", "brittle")
	m.configured(map[string]string{"local.vg": `"brittle"`})

	for backend, lower := range map[string]string{"lvm": "", "lvmthin": "pool0_tdata"} {
		m.scenario("a spot below "+backend, func(m machine) {
			d := m.bind(named("spot-"+backend, disk{"vda", backend, "slow"}))
			spot := m.segment("brittle", lower) + 8<<20
			m.fails(pv, spot, spot+1<<20)
			m.vetoed(d, "disk vda", "brittle/"+d.copyName("vda"), "nput/output error")
			m.notReady(d, "vda")
			m.works(pv)
			m.converges(d)
			m.forget(d)
		})
	}

	m.scenario("everywhere", func(m machine) {
		d := m.bind(named("dead-disk", disk{"vda", "lvm", "slow"}))
		m.configure(map[string]string{"local.vg": `"brittle"`, "local.rate": `"2MiB"`})
		ended := m.starting(d)
		m.fails(pv, 0, flakySize)
		first := <-ended
		m.refused(first, 1, "disk vda", "brittle/"+d.copyName("vda"), "nput/output error")
		m.vetoed(d, "disk vda", "brittle")
		m.works(pv)
		m.notReady(d, "vda")
		m.configure(map[string]string{"local.vg": `"brittle"`})
		m.converges(d)
		m.forget(d)
	})
}

// sourceFails: a spot that cannot be read, a whole file system that is gone,
// and a raw device that fails now and then.
func sourceFails(m machine) {
	m.memoryDisks()
	m.scenario("file", func(m machine) {
		under := m.flaky("old-disk", "/dev/ram1", flakySize)
		const at = "/mnt/old"
		m.run("mkfs.ext4", "-q", under.path())
		m.run("mkdir", "-p", at)
		m.run("mount", under.path(), at)
		m.run("cp", "-a", filepath.Join(export, "slow"), at)
		m.run("umount", at)
		m.run("mount", "-o", "ro", under.path(), at)
		m.finally("umount", at)

		d := m.bind(named("bad-spot", disk{"vda", "lvm", filepath.Join(at, "slow")}))
		spot := m.onDisk(filepath.Join(at, "slow/base.qcow2"), 10<<20)
		m.fails(under, spot, spot+64<<10)
		m.vetoed(d, "disk vda", filepath.Join(at, "slow"), "nput/output error")
		m.notReady(d, "vda")
		m.works(under)
		m.converges(d)
		m.forget(d)

		gone := m.bind(named("bad-disk", disk{"vda", "lvmthin", filepath.Join(at, "slow")}))
		m.fails(under, 0, flakySize)
		m.run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
		m.answered("a start without its source", m.vetoed(gone, "disk vda", at, "nput/output error"))
		m.notReady(gone, "vda")
		m.works(under)
		m.converges(gone)
		m.forget(gone)
	})
	m.scenario("device", func(m machine) {
		lun := m.flaky("lun", "/dev/ram1", oddSize)
		m.configured(map[string]string{"paths.roots": `["/mnt", "/dev/mapper"]`, "local.rate": `"4MiB"`})
		m.run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", filepath.Join(shared, "slow/top.qcow2"), lun.path())
		d := m.bind(named("raw", disk{"vda", "lvm", lun.path()}))
		// Two seconds well, a minute not.
		m.table(lun, fmt.Sprintf("0 %d flakey %s %d 2 60", oddSize/512, lun.below, flakyStart))
		m.vetoed(d, "disk vda", "nput/output error")
		m.notReady(d, "vda")
		m.works(lun)
		m.converges(d)
		m.forget(d)
	})
}

// onDisk is where the byte at offset of a file is on the file system's device.
func (m machine) onDisk(path string, offset int64) int64 {
	m.Helper()
	const extents = `filefrag -b512 -v "$1" | tr -d : | sed 's/\.\./ /g' | awk '$1 ~ /^[0-9]+$/ { print $2, $3, $4 }'`
	rows := m.run("sh", "-euc", extents, "sh", path)
	for row := range strings.Lines(rows) {
		var from, last, at int64
		if _, err := fmt.Sscan(row, &from, &last, &at); err != nil {
			m.Fatalf("extents of %s: %v\n%s", path, err, rows)
		}
		if from <= offset/512 && offset/512+128 <= last {
			return 512*at + offset - 512*from
		}
	}
	m.Fatalf("%s: no extent at %d:\n%s", path, offset, rows)
	return 0
}
