// SPDX-License-Identifier: Apache-2.0

package hooktest

import (
	"cmp"
	"context"
	"os"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
	"diskhook/storage/transfer"
)

// Repository is a storage repository of the host, on files below the root, that is
// called r.
type Repository struct {
	*World
	*repository.Service
}

// WithRepository makes one. The host's disks may be its images.
func (w *World) WithRepository() *Repository {
	w.Helper()
	r := &Repository{w, repositoryAt(w.Root)}
	place := map[string]string{"path": w.Path("repo")}
	if err := r.CreateStorageRepository(w.Context(), localfs.Name, place); err != nil {
		w.Fatal(err)
	}
	if err := r.ConnectStorageRepository(w.Context(), "r", localfs.Name, place); err != nil {
		w.Fatal(err)
	}
	w.Images = func() (bindings.Images, error) { return r.Service, nil }
	return r
}

// repositoryAt is the service of a host below root, in the boot that root/boot
// names.
func repositoryAt(root string) *repository.Service {
	service := serviceAt(root, nil)
	boot, _ := os.ReadFile(root + "/boot")
	return &repository.Service{
		Layout: host.Layout{Root: root}, HostID: Machine, BootID: cmp.Or(string(boot), "boot-1"),
		Formats: []format.Format{localfs.Format{}}, Deadline: time.Minute,
		Engine: &transfer.Engine{Run: command.System{}, Log: service.Log}, Images: &qemuimg.QemuImg{Run: command.System{}},
		Allowed: service.Config.Paths.Allowed, Log: service.Log,
	}
}

// Reboot has the host boot again: /run is empty.
func (r *Repository) Reboot() {
	r.Helper()
	r.Write("boot", "boot-2")
	r.Service.BootID = "boot-2"
	if err := os.RemoveAll(r.Path("run")); err != nil {
		r.Fatal(err)
	}
}

// Disk makes an image that guests write, with what the file has.
func (r *Repository) Disk(file string) string { return r.image(file, repository.Disk) }

// Template makes an image that nobody writes.
func (r *Repository) Template(file string) string { return r.image(file, repository.Snapshot) }

func (r *Repository) image(file string, kind repository.Kind) string {
	r.Helper()
	layers := []imagecheck.Layer{{Path: file, Format: imagecheck.Raw}}
	id, err := r.ImportImage(r.Context(), "r", layers, kind, nil, repository.Options{})
	if err != nil {
		r.Fatal(err)
	}
	return id
}

// Cut makes a snapshot of a disk.
func (r *Repository) Cut(id string) string {
	r.Helper()
	snapshot, err := r.CreateSnapshot(r.Context(), "r", id, nil, repository.Options{})
	if err != nil {
		r.Fatal(err)
	}
	return snapshot
}

// Holders are who uses an image: "NAME on HOST".
func (r *Repository) Holders(id string) []string {
	r.Helper()
	info, err := r.GetImage(context.WithoutCancel(r.Context()), "r", id)
	if err != nil {
		r.Fatal(err)
	}
	return info.Holders
}
