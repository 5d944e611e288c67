// SPDX-License-Identifier: Apache-2.0

//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestAllOrNothing: the disks of a domain are made ready together. One that
// cannot be leaves the others as they were.
func TestAllOrNothing(t *testing.T) {
	d := newDomain(t, "two")
	second := filepath.Join(d.dir, "second.raw")
	writeImage(t, d.image(), diskImage(false))
	writeImage(t, second, diskImage(true))
	d.disks = diskXML("file", d.image(), "raw", "vda") + diskXML("file", second, "raw", "vdb")
	d.define()
	before := d.dumped()
	diskhook(t, 0, "domain", "apply", "--local", "*", "two")
	link, copied := strings.TrimSuffix(d.link(), "vda")+"vdb", strings.Replace(d.copy(), "_vda.raw", "_vdb.raw", 1)
	holds(t, d.copy(), diskImage(false))
	holds(t, copied, diskImage(true))

	d.start()
	d.boots(1)
	if !exists(link) {
		t.Error("the second disk has no stable path")
	}
	d.destroy()

	back := moved(t, copied)
	state := digest(t, "/var/lib/diskhook")
	d.startVetoed("domain two: disk vdb: ", "is gone")
	d.linked(false)
	if digest(t, "/var/lib/diskhook") != state {
		t.Error("the refused start changed something")
	}
	back()
	d.start()
	d.boots(2)
	d.destroy()
	holds(t, copied, diskImage(true))

	// One disk goes back, the other stays bound.
	diskhook(t, 0, "domain", "revert", "--discard-guest-data", "two", "vdb")
	if exists(copied) || !strings.Contains(d.dumped(), "<source file='"+second) {
		t.Error("vdb was not reverted")
	}
	d.start()
	d.boots(3)
	d.destroy()
	diskhook(t, 0, "domain", "revert", "--discard-guest-data", "two")
	same(t, before, d.dumped())
}

// TestSideBySide: domains that start at once, from one base that they share,
// get a copy each.
func TestSideBySide(t *testing.T) {
	base := newDomain(t, "base")
	image := diskImage(false)
	top := chain(t, base.dir, image)
	var all []*domain
	for i := range 3 {
		d := newDomain(t, fmt.Sprintf("side%d", i))
		d.bind("fill='start'", diskXML("file", top, "qcow2", "vda"))
		d.define()
		all = append(all, d)
	}
	source := digest(t, base.dir)
	results := make([]result, len(all))
	var starts sync.WaitGroup
	for i, d := range all {
		starts.Go(func() { results[i] = try(t, "virsh", "-q", "start", d.uuid) })
	}
	starts.Wait()
	for i, d := range all {
		if results[i].code != 0 {
			t.Fatalf("%s: %s", d.name, results[i].stderr)
		}
		d.boots(1)
		d.linked(true)
		holds(t, d.copy(), after(image, 1))
	}
	if digest(t, base.dir) != source {
		t.Error("the base was changed")
	}
}
