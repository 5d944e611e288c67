// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/extent"
	"diskhook/storage/thin/group"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/master"
	"diskhook/storage/thin/member"
	"diskhook/storage/thin/request"
)

const (
	thinBlock  = 64 << 10
	guestSize  = 1000 // mappings of the volume that is attached all the time
	thinRounds = 3
)

// thinVolumes measures what a volume's size does to the verbs on it, in a cluster of
// one host whose volumes are files and whose kernel is idle. Beside each is what it
// takes to write and to read the same mappings as dm-thin metadata, once.
func thinVolumes(ctx context.Context, out io.Writer) error {
	dir, err := os.MkdirTemp("/var/tmp", "diskhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sizes := []uint64{10_000, 100_000, 1_000_000, 10_000_000}
	files := group.Files{Dir: filepath.Join(dir, "lun"), Capacity: 1 << 44}
	if err := os.Mkdir(files.Dir, 0o700); err != nil {
		return err
	}
	kernel := newIdleKernel()
	b, err := newThinBench(ctx, dir, uuid.New(), files, kernel, 2*sizes[len(sizes)-1])
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  a cluster of %d blocks; a kernel that takes no time, so that the times are diskhook's own\n", b.blocks)
	pauses := func() time.Duration {
		longest := slices.Max(append(kernel.pauses, 0))
		kernel.pauses = nil
		return longest
	}
	var first thinTimes
	for i, n := range sizes {
		codec, err := thinCodec(dir, n)
		if err != nil {
			return err
		}
		t, err := b.measure(ctx, n, pauses)
		if err != nil {
			return err
		}
		if i == 0 {
			first = t
		}
		t.print(out, n, first)
		fmt.Fprintf(out, "    writing and reading its metadata alone takes %.0f ms: attach %.2f ×\n", milliseconds(codec), ratio(t.attach, codec))
	}
	return b.beside(ctx, out, sizes[:3], pauses)
}

// beside prints how long others are held back while a small volume comes, as what they
// map themselves grows.
func (b *thinBench) beside(ctx context.Context, out io.Writer, sizes []uint64, pause func() time.Duration) error {
	var first time.Duration
	if err := b.plant(ctx, "small", guestSize); err != nil {
		return err
	}
	for _, n := range sizes {
		name := fmt.Sprintf("stays%d", n)
		err := b.plant(ctx, name, n)
		if err == nil {
			_, err = b.Attach(ctx, name, member.AttachOptions{})
		}
		if err != nil {
			return err
		}
		t, err := b.rounds(ctx, "small", pause)
		if err != nil {
			return err
		}
		if first == 0 {
			first = t.pause
		}
		fmt.Fprintf(out, "  a small volume comes to others of %9d mappings:  pause %.1f ms, %.2f ×\n", n+guestSize, milliseconds(t.pause), ratio(t.pause, first))
		if err := errors.Join(b.Detach(ctx, name), b.Delete(ctx, name), b.Rebuild(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// thinCodec builds and reads metadata of so many mappings.
func thinCodec(dir string, n uint64) (time.Duration, error) {
	path := filepath.Join(dir, "image")
	defer os.Remove(path)
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(metadataBlocks(n))*4096)); err != nil {
		return 0, err
	}
	image, err := layout.Open(path, true)
	if err != nil {
		return 0, err
	}
	defer image.Close()
	times, err := inTurns(thinRounds, []func() error{func() error {
		if err := buildMetadata(image, n, 1); err != nil {
			return err
		}
		return readMetadata(image)
	}})
	if err != nil {
		return 0, err
	}
	return times[0], nil
}

// thinBench is a cluster of one host.
type thinBench struct {
	group   group.Group
	cluster uuid.UUID
	chief   *master.Master
	*member.Member
	blocks uint64
	next   uint64 // block that no volume has been given yet
}

// newThinBench makes the cluster, with so many blocks for volumes, starts the host's
// pool and attaches a volume that stays.
func newThinBench(ctx context.Context, dir string, id uuid.UUID, g group.Group, mapper devmapper.Mapper, blocks uint64) (*thinBench, error) {
	log := slog.New(slog.DiscardHandler)
	b := &thinBench{group: g, cluster: id, blocks: blocks + 4096, next: 1}
	b.chief = &master.Master{Group: g, Cluster: b.cluster, Name: "bench", Layout: host.Layout{Root: filepath.Join(dir, "root")}, Run: command.System{Log: log}, Log: log}
	host := uuid.New()
	b.Member = &member.Member{
		Name: "bench", Cluster: b.cluster, Host: host, Group: g, Mapper: mapper, Windows: member.Native{Mapper: mapper},
		Channel:  func(layout.Device, uint64) request.Channel { return b.chief.Channel(host) },
		Deadline: 10 * time.Minute, Locks: filepath.Join(dir, "locks"), Links: filepath.Join(dir, "links"), Dev: "/dev", Log: log,
	}
	if _, err := b.chief.Init(ctx, master.Shape{Bytes: b.blocks * thinBlock, BlockSize: thinBlock}); err != nil {
		return nil, err
	}
	if _, err := b.chief.Join(ctx, master.Newcomer{UUID: host, Name: "host"}); err != nil {
		return nil, err
	}
	if err := b.Start(ctx); err != nil {
		return nil, err
	}
	if err := b.plant(ctx, "guest", guestSize); err != nil {
		return nil, err
	}
	_, err := b.Attach(ctx, "guest", member.AttachOptions{})
	return b, err
}

// plant makes a volume of which so many blocks are mapped, no two of which lie side
// by side on both sides. Its mapping is written as if a host had detached it: nobody
// has to write terabytes for it.
func (b *thinBench) plant(ctx context.Context, name string, n uint64) error {
	id := uuid.New()
	if err := b.Create(ctx, id, name, n*thinBlock); err != nil {
		return err
	}
	return group.With(ctx, b.group, layout.MapName, true, func(dev group.Volume) error {
		m, stamp, err := layout.ReadMap(dev, b.cluster)
		if err != nil {
			return err
		}
		v := &m.Volumes[slices.IndexFunc(m.Volumes, func(v layout.VolumeRecord) bool { return v.UUID == id })]
		mapping := layout.Mapping{Number: v.Number, BlockSize: thinBlock, Size: v.Size, Runs: make([]layout.MappingRun, n)}
		for i := range n {
			mapping.Runs[i] = layout.MappingRun{Virtual: i, Physical: b.next + n - 1 - i, Length: 1}
		}
		name := layout.Thin.Name(id)
		if err := b.group.Extend(ctx, name, 2*mapping.Length()+1<<20); err != nil {
			return err
		}
		if err := group.With(ctx, b.group, name, true, func(thin group.Volume) error {
			return layout.WriteMapping(thin, b.cluster, id, v.Generation, v.Generation+1, stamp.Epoch, mapping)
		}); err != nil {
			return err
		}
		v.Generation++
		m.Give(extent.Of(extent.Extent{Start: b.next, Length: n}), layout.Owner{Kind: layout.OfVolume, Number: v.Number})
		b.next += n
		_, err = layout.CommitMap(dev, b.cluster, stamp, stamp.Epoch, m)
		return err
	})
}

// thinTimes are the best times of verbs on a volume, and the longest pause of the
// other volume in the attach that had the shortest.
type thinTimes struct{ attach, detach, clone, pause time.Duration }

// measure takes a volume to the host, away, and clones it. pause tells how long the
// other volume was held back since it was asked last.
func (b *thinBench) measure(ctx context.Context, n uint64, pause func() time.Duration) (thinTimes, error) {
	name, clone := fmt.Sprintf("v%d", n), fmt.Sprintf("c%d", n)
	if err := b.plant(ctx, name, n); err != nil {
		return thinTimes{}, err
	}
	t, err := b.rounds(ctx, name, pause)
	if err != nil {
		return t, err
	}
	for range thinRounds {
		took, err := inTurns(1, []func() error{func() error { return b.Clone(ctx, name, uuid.New(), clone) }})
		if err == nil {
			err = b.Delete(ctx, clone)
		}
		if err != nil {
			return t, err
		}
		t.clone = least(t.clone, took[0])
	}
	// What the next one is attached with would have this one in its way.
	return t, errors.Join(b.Delete(ctx, name), b.Rebuild(ctx))
}

// rounds takes a volume to the host and away.
func (b *thinBench) rounds(ctx context.Context, name string, pause func() time.Duration) (thinTimes, error) {
	var t thinTimes
	pause()
	for range thinRounds {
		took, err := inTurns(1, []func() error{
			func() error { _, err := b.Attach(ctx, name, member.AttachOptions{}); return err },
			func() error { t.pause = least(t.pause, pause()); return nil },
			func() error { return b.Detach(ctx, name) },
		})
		if err != nil {
			return t, err
		}
		t.attach, t.detach = least(t.attach, took[0]), least(t.detach, took[2])
	}
	return t, nil
}

// least is the shorter of two times, of which the first may not be there yet.
func least(before, now time.Duration) time.Duration {
	if before == 0 {
		return now
	}
	return min(before, now)
}

func (t thinTimes) print(out io.Writer, n uint64, first thinTimes) {
	fmt.Fprintf(out, "  %9d mappings: ", n)
	for _, one := range []struct {
		name     string
		it, than time.Duration
	}{{"attach", t.attach, first.attach}, {"pause", t.pause, first.pause}, {"detach", t.detach, first.detach}, {"clone", t.clone, first.clone}} {
		fmt.Fprintf(out, " %s %.1f ms, %.2f ×;", one.name, milliseconds(one.it), ratio(one.it, one.than))
	}
	fmt.Fprintln(out)
}
