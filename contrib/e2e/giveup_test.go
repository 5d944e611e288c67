// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"strconv"
)

// resize grows a copy over extents that somebody else has written to.
func resize(m machine) {
	d := web()
	old := m.lv(d.copyName("vda"), "lv_uuid")[0]
	m.refused(m.try("", "diskhook", "local", "resize", d.id, "vda", "1M"), 2, "disk vda", "would cut it off")
	m.run("diskhook", "local", "resize", d.id, "vda", "41M")
	if lv := m.lv(d.copyName("vda"), "lv_uuid", "lv_size"); lv[0] != old || lv[1] != strconv.Itoa(44<<20) {
		m.Errorf("resized: %v, was %s", lv, old)
	}
	if r := m.receipt(d.id, "vda"); r == nil || r.Size != 41<<20 || r.Growing != nil {
		m.Errorf("receipt %+v", r)
	}
	m.started(d)
	m.bytesAre(d.link("vda"), oddSize, 0, 0)
	m.reads(d.link("vda"), 0x77, 3<<20)
	m.stopped(d)
	m.unchanged(func() { m.run("diskhook", "local", "resize", d.id, "vda", "41M") })
}

// givingUp: a guest's data goes only when the operator says where to.
func givingUp(m machine) {
	d := web()
	m.unchanged(func() {
		m.refused(m.try("", "diskhook", "local", "remove", d.id, "vda"), 4, "disk vda", "nowhere else", "--export", "--discard-guest-data")
		m.refused(m.try("", "diskhook", "local", "recreate", d.id, "vda"), 4, "disk vda", "--export", "--discard-guest-data")
	})
	m.unchanged(func() { m.run("diskhook", "local", "export", d.id, "vda", "/srv/saved.qcow2") })
	m.started(d)
	m.run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", "/srv/saved.qcow2", d.link("vda"))
	m.refused(m.try("", "diskhook", "local", "export", d.id, "vdb", "/srv/saved.qcow2"), 4, "/srv/saved.qcow2", "exists")
	m.stopped(d)

	before := m.lv(d.copyName("vda"), "lv_uuid")[0]
	m.run("diskhook", "local", "recreate", "--export", "/srv/again.raw", d.id, "vda")
	m.run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", "/srv/saved.qcow2", "/srv/again.raw")
	if r := m.receipt(d.id, "vda"); r == nil || r.Used || r.Copy == before {
		m.Errorf("receipt after recreate: %+v", r)
	}
	m.started(d)
	m.same(d)
	m.stopped(d)

	m.run("diskhook", "local", "remove", "--discard-guest-data", d.id, "vda")
	m.nothingLeft(d, "vda")
	if m.receipt(d.id, "vdb") == nil {
		m.Error("the other disk's receipt is gone, too")
	}
	m.started(d) // fill=start
	m.same(d)
	m.writes(d.link("vda"), 0x78, 8<<20)
	m.stopped(d)
	m.run("rm", "/srv/saved.qcow2", "/srv/again.raw")
}
