// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
)

// nothingLeft wants no copy, no receipt and no path of a disk.
func (m machine) nothingLeft(d domain, target string) {
	m.Helper()
	if strings.Contains(m.volumes(), d.copyName(target)) || m.receipt(d.id, target) != nil || exists(d.link(target)) {
		m.Errorf("%s: disk %s: something is left", d.name, target)
	}
}

// noRoom: what does not fit is refused before anything is made, and what fills
// up on the way is taken away again.
func noRoom(m machine) {
	huge := m.bind(named("huge", disk{"vda", "lvm", "huge"}))
	m.unchanged(func() {
		m.vetoed(huge, "disk vda", "vg ovirt-local", "bytes are needed", "vgextend ovirt-local")
	})
	m.nothingLeft(huge, "vda")

	// All or nothing: the disk that would fit is not made either.
	mixed := m.bind(named("mixed", disk{"vda", "lvm", "one"}, disk{"vdb", "lvm", "huge"}))
	m.unchanged(func() { m.vetoed(mixed, "vg ovirt-local", "bytes are needed") })
	m.nothingLeft(mixed, "vda")
	m.nothingLeft(mixed, "vdb")

	thin := m.bind(named("thin", disk{"vda", "lvmthin", "one"}))
	m.configured(map[string]string{"local.pool_reserve": "95"})
	m.unchanged(func() { m.vetoed(thin, "lv ovirt-local/pool0", "full", "lvextend") })

	// A pool with less room than the disk has data, which the watermark does not
	// tell beforehand.
	m.run("lvcreate", "-y", "-n", "narrow", "--type", "thin-pool", "-L", "8m", "ovirt-local")
	m.must(os.WriteFile("/sys/module/dm_thin_pool/parameters/no_space_timeout", []byte("3"), 0))
	overflow := m.bind(named("overflow", disk{"vda", "lvmthin", "slow"}))
	m.configure(map[string]string{"local.pool": `"narrow"`})
	m.vetoed(overflow, "disk vda", "no space left on device")
	m.nothingLeft(overflow, "vda")
	m.run("lvremove", "-y", "ovirt-local/narrow")
	// pool0 did not feel it.
	m.configure(nil)
	m.started(overflow)
	m.same(overflow)
	m.stopped(overflow)
	m.run("diskhook", "local", "remove", "--discard-guest-data", overflow.id, "vda")
}

// nothingThere: volume group, thin pool or source are missing.
func nothingThere(m machine) {
	d := m.bind(named("lonely", disk{"vda", "lvmthin", "four"}))
	m.configured(map[string]string{"local.vg": `"elsewhere"`})
	m.vetoed(d, "disk vda", "elsewhere", "vgcreate elsewhere")
	m.configure(map[string]string{"local.pool": `"elsewhere"`})
	m.unchanged(func() { m.vetoed(d, "disk vda", "ovirt-local/elsewhere", "lvcreate --type thin-pool") })
	m.configure(nil)

	for _, layer := range []string{"top", "base"} {
		path := filepath.Join(shared, "four", layer+".qcow2")
		m.must(os.Rename(path, path+".gone"))
		m.unchanged(func() { m.vetoed(d, "disk vda", path) })
		m.must(os.Rename(path+".gone", path))
	}
	m.nothingLeft(d, "vda")
}
