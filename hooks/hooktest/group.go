// SPDX-License-Identifier: Apache-2.0

package hooktest

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/host"
	"diskhook/storage/lvm"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

// WithGroup makes a repository on a volume group that another host has as well, which is
// returned, too. The group is on files, so that its volumes are no devices.
func (w *World) WithGroup() (here *Repository, other *repository.Service) {
	w.Helper()
	if err := lvmtest.CreateShared(w.groupState(), "san", "sanlock", 256<<20, 64<<10); err != nil {
		w.Fatal(err)
	}
	here = &Repository{w, w.member(w.Root, Machine, 1)}
	other = w.member(w.Path("other"), "fedcba9876543210fedcba9876543210", 2)
	place := map[string]string{"vg": "san"}
	if err := here.CreateStorageRepository(w.Context(), clvm.Name, place); err != nil {
		w.Fatal(err)
	}
	for _, s := range []*repository.Service{here.Service, other} {
		if err := s.ConnectStorageRepository(w.Context(), "r", clvm.Name, place); err != nil {
			w.Fatal(err)
		}
	}
	w.Images = func() (bindings.Images, error) { return here.Service, nil }
	return here, other
}

func (w *World) groupState() string { return w.Path("groups/san") }

// member is the service of a host that has the group.
func (w *World) member(root, hostID string, number int) *repository.Service {
	s := repositoryAt(w.Root)
	layout := host.Layout{Root: root}
	s.Layout, s.HostID = layout, hostID
	dev := filepath.Join(root, "dev")
	s.Formats = []format.Format{clvm.Format{
		LVM: &lvm.LVM{Run: lvmtest.Shared{State: w.groupState(), Dev: dev, Host: hostID}}, Dev: dev,
		HostID: hostID, BootID: s.BootID, Number: number, Locks: layout.Locks(), Cursors: filepath.Join(layout.State(), "cursors"),
		Beat: time.Second, Buckets: 8,
		Await: func(_ context.Context, path string) error { _, err := os.Stat(path); return err },
	}}
	return s
}

// ActiveOn are the hosts on which a volume of the group is active: true says that it is so
// on that host alone.
func (w *World) ActiveOn(volume string) map[string]bool {
	w.Helper()
	g, err := lvmtest.Load(w.groupState())
	if err != nil || g.Volumes[volume] == nil {
		w.Fatalf("volume %s: %v", volume, err)
	}
	return g.Volumes[volume].On
}
