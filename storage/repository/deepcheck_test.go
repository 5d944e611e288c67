// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
)

// volumesOf are the paths of an image's volumes, top first.
func (w *world) volumesOf(repo, image string) (paths []string) {
	s := w.on("h1")
	p, err := s.PrepareImage(w.Context(), repo, image, repository.Preparing{Holder: "look"})
	must(w, err)
	must(w, s.ReleaseImage(w.Context(), repo, image, "look"))
	for _, l := range p.Layers {
		paths = append(paths, l.Path)
	}
	return paths
}

// refcount sets that of a cluster of a qcow2 image, or of the first one that nothing
// uses if it is -1 (QEMU, docs/interop/qcow2: 16 bits each, big-endian).
func refcount(t *testing.T, path string, cluster int64, count uint16) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	number := func(at int64) int64 {
		var b [8]byte
		_, err := f.ReadAt(b[:], at)
		must(t, err)
		return int64(binary.BigEndian.Uint64(b[:]))
	}
	block := number(number(48)) // refcount_table_offset, and its first entry
	if cluster < 0 {
		st, err := f.Stat()
		must(t, err)
		cluster = (st.Size() + 65535) >> 16
		must(t, f.Truncate((cluster+1)<<16))
	}
	_, err = f.WriteAt(binary.BigEndian.AppendUint16(nil, count), block+2*cluster)
	must(t, err)
}

func deep(t *testing.T, w *world) repository.Report {
	t.Helper()
	report, err := w.on("h2").DeepCheckStorageRepository(t.Context(), "a")
	must(t, err)
	return report
}

func TestADeepCheckFreesWhatLeaked(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	if r := deep(t, w); len(r.Fixes)+len(r.Problems)+r.Skipped > 0 {
		t.Fatalf("%+v", r)
	}
	refcount(t, w.volumesOf("a", disk)[0], -1, 1)
	s := w.on("h1")
	_, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
	must(t, err)
	if r := deep(t, w); len(r.Fixes)+len(r.Problems) > 0 || r.Skipped != 2 {
		t.Errorf("in use: %+v", r)
	}
	must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
	r := deep(t, w)
	if len(r.Fixes) != 1 || len(r.Problems) > 0 || r.Fixes[0].Type != repository.Clean || !strings.Contains(r.Fixes[0].Summary, "1 clusters") {
		t.Fatalf("%+v", r)
	}
	_, err = s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
	must(t, err)
	refused(t, s.FixStorageRepository(ctx, "a", r.Fixes[0], repository.Options{}), repository.ErrInUse)
	must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
	must(t, s.FixStorageRepository(ctx, "a", r.Fixes[0], repository.Options{}))
	if r := deep(t, w); len(r.Fixes)+len(r.Problems) > 0 {
		t.Errorf("afterwards: %+v", r)
	}
	w.holds("a", disk, w.path("now.raw"))
}

// leaking is a disk with a cluster that leaked, and the fix that frees it.
func leaking(t *testing.T, w *world) (disk string, fix repository.Fix) {
	t.Helper()
	disk, _ = w.diskOnBase()
	refcount(t, w.volumesOf("a", disk)[0], -1, 1)
	r := deep(t, w)
	if len(r.Fixes) != 1 || len(r.Problems) > 0 || r.Fixes[0].Type != repository.Clean || !slices.Equal(r.Fixes[0].Images, []string{disk}) {
		t.Fatalf("%+v", r)
	}
	return disk, r.Fixes[0]
}

// Where several hosts have a file, who lost his lock may go on in it: until what leaked is
// freed nobody gets to write it.
func TestWhatLeakedInSharedFilesIsFreed(t *testing.T) {
	w := newWorld(t, "nfs-3.4")
	s, ctx := w.on("h1"), t.Context()
	disk, fix := leaking(t, w)
	_, err := s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
	must(t, err)
	refused(t, w.on("h2").FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrInUse, "vm on host h1")
	must(t, s.ReleaseImage(ctx, "a", disk, "vm"))
	must(t, w.on("h2").FixStorageRepository(ctx, "a", fix, repository.Options{NoAutoFix: true}))
	refused(t, w.on("h2").FixStorageRepository(ctx, "a", fix, repository.Options{}), repository.ErrStaleFix)
	_, err = s.PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	refused(t, err, repository.ErrBusy, "its repair is not done")
	before := w.files("a")
	must(t, s.Run(ctx, "a", disk))
	if r := deep(t, w); len(r.Fixes)+len(r.Problems) > 0 || !slices.Equal(before, w.files("a")) {
		t.Errorf("afterwards: %+v, %v", r, w.files("a"))
	}
	w.holds("a", disk, w.path("now.raw"))
	w.settled()
}

// If who was at it fell silent the image is copied, and what he may go on with is nobody's.
func TestATakenOverRepairBecomesACopy(t *testing.T) {
	for _, silent := range []string{"work-", "volume-"} {
		t.Run("lock "+silent, func(t *testing.T) {
			w := newWorld(t, "nfs-3.4")
			disk, fix := leaking(t, w)
			// The same files, on a host that takes the locks over.
			must(t, w.on("h1").FixStorageRepository(t.Context(), "a", fix, repository.Options{NoAutoFix: true}))
			thief := &silentNFS{Format: w.nfs("h2"), silent: silent}
			second := w.on("h2")
			second.Formats = []format.Format{thief}
			before := w.files("a")
			must(t, second.Run(t.Context(), "a", disk))
			w.holds("a", disk, w.path("now.raw"))
			w.settled()
			w.moved(before, 1)
		})
	}
}

// silentNFS takes the locks whose names begin so from a host that may wake up.
type silentNFS struct {
	format.Format
	silent string
}

func (n *silentNFS) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := n.Format.Open(ctx, parameters)
	return &silentPlace{p, n.silent}, err
}

type silentPlace struct {
	format.Place
	silent string
}

func (p *silentPlace) TryLock(ctx context.Context, name string) (format.Lock, error) {
	l, err := p.Place.TryLock(ctx, name)
	if err == nil && strings.HasPrefix(name, p.silent) {
		l = takenOver{l}
	}
	return l, err
}

// nfs is that format on a host.
func (w *world) nfs(hostID string) format.Format {
	for _, f := range w.on(hostID).Formats {
		if f.Name() == "nfs-3.4" {
			return f
		}
	}
	w.Fatal("no format is called nfs-3.4")
	return nil
}

func TestADeepCheckTellsOfDamage(t *testing.T) {
	for _, c := range []struct {
		what, word string
		shallow    bool
		damage     func(t *testing.T, upper, lower string)
	}{
		{"corrupted", "`qemu-img check` finds 1 corruptions", false, func(t *testing.T, upper, _ string) { refcount(t, upper, 1, 0) }},
		{"cut off", "it is of 2097152 bytes, not 4194304", false, func(t *testing.T, _, lower string) { must(t, os.Truncate(lower, 2*mib)) }},
		{"lost", "its data is not there", true, func(t *testing.T, _, lower string) { must(t, os.Remove(lower)) }},
		{"no image", "", false, func(t *testing.T, upper, _ string) { must(t, os.WriteFile(upper, make([]byte, mib), 0o600)) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld(t, "localfs-1.0")
			disk, _ := w.diskOnBase()
			paths := w.volumesOf("a", disk)
			c.damage(t, paths[0], paths[1])
			r := deep(t, w)
			if len(r.Problems) != 1 || len(r.Fixes) > 0 || !strings.Contains(r.Problems[0], c.word) || !strings.Contains(strings.Join(r.Problems, "\n"), disk) {
				t.Errorf("%+v", r)
			}
			r, err := w.on("h2").CheckStorageRepository(t.Context(), "a")
			must(t, err)
			if c.shallow != (len(r.Problems) == 1) {
				t.Errorf("without looking into volumes: %+v", r)
			}
		})
	}
}

// QEMU would read zeros where the lower one ends, and a guest go on with that.
func TestAnImageOnOneThatWasCutOffIsNotPrepared(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		if format == "clvm-1.2" {
			return // its volumes are not files
		}
		w := newWorld(t, format)
		disk, base := w.diskOnBase()
		must(t, os.Truncate(w.volumesOf("a", disk)[1], 2*mib))
		for _, id := range []string{disk, base} {
			_, err := w.on("h1").PrepareImage(t.Context(), "a", id, repository.Preparing{Holder: "vm", Write: id == disk})
			refused(t, err, repository.ErrBroken, "it is of 2097152 bytes, not 4194304")
		}
		info, err := w.on("h1").GetImage(t.Context(), "a", disk)
		must(t, err)
		if len(info.Holders) > 0 {
			t.Errorf("%+v", info)
		}
	})
}
