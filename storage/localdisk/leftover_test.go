// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package localdisk_test

import (
	"os"
	"testing"

	"diskhook/storage/localdisk"
	"diskhook/storage/lvm/lvmtest"
)

// TestReleaseRest: two disks run, one is unplugged, another one takes its
// target; then the domain ends, and its end names the last one alone.
func TestReleaseRest(t *testing.T) {
	const first, second, third = "1dfad482-c65c-436c-aa59-87e020b63302", "b3335e60-6d27-46e0-bed8-50e75cca6786", "22222222-2222-4222-8222-222222222222"
	for _, backend := range []string{"lvm", "dir"} {
		t.Run(backend, func(t *testing.T) {
			w := newWorld(t, backend)
			s := service()
			disk := func(target, volume string) localdisk.Disk {
				d := w.disk()
				d.Target, d.Image, d.Volume, d.OnStop = target, volume, volume, localdisk.Discard
				return d
			}
			for _, d := range []localdisk.Disk{disk("sda", first), disk("sdb", second), disk("sdb", third)} {
				_, err := s.Fulfil(t.Context(), []localdisk.Disk{d}, localdisk.Waiting{})
				must(t, err)
			}
			active := func() (names map[string]bool) {
				names = map[string]bool{}
				if backend == "dir" {
					return names
				}
				g, err := lvmtest.Load(w.path("lvm"))
				must(t, err)
				for name, v := range g.Volumes {
					if v.Active && name != "pool0" {
						names[name] = true
					}
				}
				return names
			}
			must(t, s.Release(t.Context(), domain, []localdisk.Disk{disk("sda", first)}, ""))
			if backend == "lvm" {
				must(t, lvmtest.Change(w.path("lvm"), func(g *lvmtest.Group) { g.Volumes[third].Open = true }))
			}
			must(t, s.ReleaseRest(t.Context(), domain))
			if got := active(); got[first] || got[second] || got[third] != (backend == "lvm") {
				t.Errorf("active: %v", got)
			}
			if links, err := os.ReadDir(w.path("run/diskhook/disks/" + domain)); err == nil {
				t.Errorf("links are left: %v", links)
			}
			if receipts, err := localdisk.Receipts(s.Layout, domain); err != nil || len(receipts) != 3 {
				t.Errorf("given up: %v, %v", receipts, err)
			}
			must(t, s.ReleaseRest(t.Context(), domain))
		})
	}
}
