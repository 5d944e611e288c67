// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"os"
	"slices"
	"testing"

	"diskhook/storage/lvm/lvmtest"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format/clvm"
)

// Who uses a disk goes on to until he releases it, whatever becomes of it when it
// is asked for once more.
func TestASecondPrepareTakesNothingAway(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	disk, _ := w.diskOnBase()
	writing := repository.Preparing{Holder: "vm", Write: true}
	p, err := s.PrepareImage(ctx, "a", disk, writing)
	must(t, err)

	// The same for less: it still is alone.
	_, err = s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
	must(t, err)
	_, err = s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "backup"})
	refused(t, err, repository.ErrInUse, "vm on host h1")
	_, err = s.CopyImage(ctx, "b", disk, "", nil, repository.Options{})
	refused(t, err, repository.ErrInUse)

	// Its storage is away for a moment.
	away := p.Path + ".away"
	must(t, os.Rename(p.Path, away))
	_, err = s.PrepareImage(ctx, "a", disk, writing)
	refused(t, err, repository.ErrBroken)
	_, err = w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "other"})
	refused(t, err, repository.ErrInUse, "vm on host h1")
	must(t, os.Rename(away, p.Path))

	// Who never had it leaves nothing behind.
	must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
	must(t, os.Rename(p.Path, away))
	_, err = s.PrepareImage(ctx, "a", disk, writing)
	refused(t, err, repository.ErrBroken)
	must(t, os.Rename(away, p.Path))
	_, err = w.on("h2").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "other", Write: true})
	must(t, err)
}

// Who releases an image takes it from nobody else, on his host or another one.
func TestAReleaseIsOfOneHolder(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		ctx := t.Context()
		_, base := w.diskOnBase()
		hosts := []string{"h1", "h2"}
		if format == clvm.Name { // there is one host
			hosts = hosts[:1]
		}
		for _, host := range hosts {
			for _, name := range []string{"one", "two"} {
				_, err := w.on(host).PrepareImage(ctx, "a", base, repository.Preparing{Holder: name})
				must(t, err)
			}
		}
		must(t, w.on("h1").ReleaseImage(ctx, "a", base, "one"))
		must(t, w.on("h1").ReleaseImage(ctx, "a", base, "never"))
		info, err := w.on("h1").GetImage(ctx, "a", base)
		must(t, err)
		wanted := []string{"two on h1", "one on h2", "two on h2"}
		if format == clvm.Name {
			wanted = wanted[:1]
		}
		if !slices.Equal(info.Holders, wanted) {
			t.Errorf("%q", info.Holders)
		}
	})
}

// A host whose last holder has gone has nothing active, though another host goes on.
func TestAHostLetsGoOfWhatOthersUse(t *testing.T) {
	w := &world{TB: t, Dir: t.TempDir(), Format: clvm.Name, LockType: "sanlock"}
	w.connect()
	ctx := t.Context()
	_, base := w.diskOnBase()
	for _, host := range []string{"h1", "h2"} {
		_, err := w.on(host).PrepareImage(ctx, "a", base, repository.Preparing{Holder: "vm"})
		must(t, err)
	}
	must(t, w.on("h1").ReleaseImage(ctx, "a", base, "vm"))
	g, err := lvmtest.Load(w.path("groups", "a"))
	must(t, err)
	for name, v := range g.Volumes {
		if _, active := v.On["h1"]; active && name != "dh_documents" {
			t.Errorf("%s is active on h1", name)
		}
	}
}

// A repository of which this host uses an image stays connected, unless that is forced:
// who releases the image needs it.
func TestARepositoryInUseStaysConnected(t *testing.T) {
	w := newWorld(t, "nfs-3.4")
	s, ctx := w.on("h1"), t.Context()
	disk, base := w.diskOnBase()
	_, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	must(t, err)
	_, err = w.on("h2").PrepareImage(ctx, "a", base, repository.Preparing{Holder: "far"})
	must(t, err)
	err = s.DisconnectStorageRepository(ctx, "a", repository.Disconnect{})
	refused(t, err, repository.ErrInUse, "vm on host h1", "diskhook image release --holder vm a/"+disk, "repo disconnect --force a")
	must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
	must(t, s.DisconnectStorageRepository(ctx, "a", repository.Disconnect{}))
	must(t, w.on("h2").DisconnectStorageRepository(ctx, "a", repository.Disconnect{Force: true}))
}
