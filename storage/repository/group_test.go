// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/lvm"
	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/clvm"
)

// group is the format on a host that has the volume groups of the world, which are
// files. Without a lock manager all hosts are processes of the one that writes.
func (w *world) group(hostID string) format.Format {
	number := 0
	switch {
	case w.LockType == "":
		hostID = onlyWriter
	case hostID == "h1":
		number = 1
	default:
		number = 2
	}
	dev := w.path("dev", hostID)
	return clvm.Format{
		LVM: &lvm.LVM{Run: groups{w, dev, hostID}}, Dev: dev, HostID: hostID, BootID: hostID + "-boot", Number: number,
		Locks: w.path("locks", hostID), Cursors: w.path("cursors", hostID), Buckets: 8, Beat: time.Second / 2,
		Await: func(_ context.Context, path string) error { _, err := os.Stat(path); return err },
	}
}

const onlyWriter = "writer"

func (w *world) groupParameters(repo string) map[string]string {
	if w.LockType == "" {
		return map[string]string{"vg": repo, "writer": onlyWriter}
	}
	return map[string]string{"vg": repo}
}

// groups poses as lvm, on the groups a and b: the last argument names one.
type groups struct {
	w         *world
	dev, host string
}

func (g groups) Run(ctx context.Context, cmd command.Cmd) (command.Result, error) {
	vg, _, _ := strings.Cut(cmd.Args[len(cmd.Args)-1], "/")
	return lvmtest.Shared{State: g.w.path("groups", vg), Dev: g.dev, Host: g.host}.Run(ctx, cmd)
}

// logical are the volumes of a repository by their names, without those of the documents.
func (w *world) logical(repo string) []string {
	g, err := lvmtest.Load(w.path("groups", repo))
	must(w, err)
	var names []string
	for name := range g.Volumes {
		if !strings.HasPrefix(name, "dh_documents") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Hosts of a group with a lock manager use it at the same time, and leave nothing
// active that another one wants.
func TestHostsShareAGroup(t *testing.T) {
	w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: "sanlock"}
	w.connect()
	ctx := t.Context()
	disk, base := w.diskOnBase()          // by h1
	w.holds("a", disk, w.path("now.raw")) // by h2
	w.holds("a", base, w.path("before.raw"))
	_, err := w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	must(t, err)
	_, err = w.on("h1").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
	refused(t, err, repository.ErrInUse, "vm on host h2")
	_, err = w.on("h1").CopyImage(ctx, "b", disk, "", nil, repository.Options{})
	refused(t, err, repository.ErrInUse)
	copied, err := w.on("h1").CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	must(t, w.on("h2").ReleaseImage(ctx, "a", disk, "vm"))
	second, err := w.on("h1").CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
	must(t, err)
	must(t, w.on("h2").RemoveImage(ctx, "a", base, repository.Options{}))
	w.repair("a") // by h2, which merges
	w.holds("a", second, w.path("now.raw"))
	w.holds("b", copied, w.path("before.raw"))
	for _, repo := range []string{"a", "b"} {
		g, err := lvmtest.Load(w.path("groups", repo))
		must(t, err)
		for name, v := range g.Volumes {
			if !strings.HasPrefix(name, "dh_documents") && len(v.On) > 0 {
				t.Errorf("%s is active on %v", name, v.On)
			}
		}
	}
}

// A host that has disconnected a repository has nothing of it active, and one that goes on
// with it does.
func TestADisconnectedGroupIsLeft(t *testing.T) {
	for _, lockType := range []string{"", "sanlock"} {
		t.Run(lockType, func(t *testing.T) {
			w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: lockType}
			w.connect()
			id, err := w.on("h1").CreateVirtualDisk(t.Context(), "a", mib, "", nil, repository.Options{})
			must(t, err)
			for _, how := range []repository.Disconnect{{}, {Force: true}} {
				must(t, w.on("h1").DisconnectStorageRepository(t.Context(), "a", how))
				g, err := lvmtest.Load(w.path("groups", "a"))
				must(t, err)
				for name, v := range g.Volumes {
					if _, on := v.On[w.group("h1").(clvm.Format).HostID]; on {
						t.Errorf("%+v: %s is active", how, name)
					}
				}
				_, err = w.on("h2").GetImage(t.Context(), "a", id)
				must(t, err)
				must(t, w.on("h1").ConnectStorageRepository(t.Context(), "a", w.Format, w.parameters("a")))
			}
		})
	}
}
