// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/command"
	"diskhook/storage/host"
	"diskhook/storage/imagecheck"
	"diskhook/storage/localdisk"
)

// golden is a base with data and the disks of many domains on it, which have
// 1 MiB of their own.
type golden struct {
	service *localdisk.Service
	dir     string // of the images
	disk    localdisk.Disk
	format  string // of the copies
	domains int
}

// domains is how many domains there are: twenty starts of one template, whose
// base has baseSize bytes of data. Under emulation there are fewer, and less of
// it: an LVM command, of which a copy needs five, takes a second there, and each
// copy is removed by some more.
const (
	domains, baseSize         = 20, 1 << 30
	thinDomains, thinBaseSize = 6, 256 << 20
)

// templatesOnFiles makes the copies of one domain and of twenty at once on a
// file system that shares blocks, and on one that does not. Each time begins
// without a template, so it has the one copy of the base in it.
func templatesOnFiles(ctx context.Context, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("it needs root, for mounts")
	}
	work, err := os.MkdirTemp("/var/tmp", "diskhook-bench.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	images := filepath.Join(work, "images")
	if err := makeGolden(ctx, images, domains, baseSize); err != nil {
		return err
	}
	fmt.Fprintf(out, "  a base with 1 GiB of data; all copies were compared with their sources\n")
	fmt.Fprintf(out, "  %-36s %9s %9s %8s\n", "", "one", "twenty", "ratio")
	for _, fs := range []struct{ name, mkfs, format string }{
		{"XFS, clones of the template", "mkfs.xfs -q -m reflink=1", imagecheck.Raw},
		{"ext4, overlays on the template", "mkfs.ext4 -q", imagecheck.QCOW2},
	} {
		if err := templatesOn(ctx, out, work, fs.name, fs.mkfs, fs.format); err != nil {
			return fmt.Errorf("%s: %w", fs.name, err)
		}
	}
	return nil
}

func templatesOn(ctx context.Context, out io.Writer, work, name, mkfs, format string) (err error) {
	at := filepath.Join(work, "at")
	// /run is in memory, as on a host.
	err = shell(ctx, `
		truncate -s 96G "$1/disk"; $2 "$1/disk"; mkdir -p "$1/at"; mount -o loop "$1/disk" "$1/at"
		mkdir -p "$1/at/root/run"; mount -t tmpfs tmpfs "$1/at/root/run"`, work, mkfs)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, shell(context.WithoutCancel(ctx), `umount "$1/at/root/run" "$1/at"; rm "$1/disk"`, work))
	}()
	layout := host.Layout{Root: filepath.Join(at, "root")}
	if err := layoutFor(layout); err != nil {
		return err
	}
	config := host.Defaults(layout)
	config.Paths.Roots = []string{filepath.Join(work, "images")}
	// The blocks that copies may come to need are not what is measured.
	config.Local.Backend, config.Local.Reserve, config.Local.Sparse = "dir", 0, true
	g := golden{
		service: &localdisk.Service{
			Layout: layout, Config: config, Run: command.System{},
			Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		},
		dir: filepath.Join(work, "images"), format: format, domains: domains,
		disk: localdisk.Disk{DomainName: "bench", Target: "vda", Backend: "dir", OnStop: localdisk.Keep, Create: true, Template: format == imagecheck.QCOW2},
	}
	one, twenty, err := g.turns(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %-36s %7.2f s %7.2f s %8.2f\n", name, one.Seconds(), twenty.Seconds(), ratio(twenty, one))
	return nil
}

// layoutFor makes what a host has below a moved root.
func layoutFor(l host.Layout) error {
	if err := os.MkdirAll(filepath.Join(l.Root, "etc"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Root, "etc/machine-id"), []byte("0123456789abcdef0123456789abcdef\n"), 0o644)
}

// makeGolden makes the images: a base of 4 GiB with size bytes of data, and the
// disks on it.
func makeGolden(ctx context.Context, dir string, domains int, size int64) error {
	return shell(ctx, `
		mkdir -p "$1"; cd "$1"
		half=$(($3 / 2))
		head -c $half /dev/urandom >noise
		qemu-img create -q -f qcow2 base.qcow2 4G
		for at in 0 $half; do qemu-io -f qcow2 -c "write -s noise $at $half" base.qcow2 >/dev/null; done
		i=0
		while [ $i -lt "$2" ]; do
			qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "top$i.qcow2"
			qemu-io -f qcow2 -c "write -s noise 3000M 1M" "top$i.qcow2" >/dev/null
			i=$((i + 1))
		done
		rm noise; sync`, dir, fmt.Sprint(domains), fmt.Sprint(size))
}

// turns measures one domain and all of them, in turns; the better one of each
// counts.
func (g golden) turns(ctx context.Context) (one, twenty time.Duration, err error) {
	const turns = 3
	for turn := range turns {
		for _, part := range []struct {
			domains int
			best    *time.Duration
		}{{1, &one}, {g.domains, &twenty}} {
			if err := shell(ctx, "sync; echo 3 >/proc/sys/vm/drop_caches"); err != nil {
				return 0, 0, err
			}
			from := time.Now()
			if err := g.fillAll(ctx, part.domains); err != nil {
				return 0, 0, err
			}
			if took := time.Since(from); *part.best == 0 || took < *part.best {
				*part.best = took
			}
			if err := g.clear(ctx, part.domains, turn == turns-1); err != nil {
				return 0, 0, err
			}
		}
	}
	return one, twenty, nil
}

// numbered is the disk of the domain of that number.
func (g golden) numbered(i int) localdisk.Disk {
	d := g.disk
	d.Domain = uuid.NewSHA1(uuid.NameSpaceURL, fmt.Append(nil, i)).String()
	d.Source = []imagecheck.Layer{
		{Path: filepath.Join(g.dir, fmt.Sprintf("top%d.qcow2", i)), Format: imagecheck.QCOW2},
		{Path: filepath.Join(g.dir, "base.qcow2"), Format: imagecheck.QCOW2},
	}
	return d
}

// fillAll does what the copy processes of so many domains do, at once.
func (g golden) fillAll(ctx context.Context, domains int) error {
	for _, dir := range []string{g.service.Layout.Locks(), g.service.Layout.Status()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	failed := make([]error, domains)
	for i := range domains {
		all.Go(func() { failed[i] = g.fill(ctx, g.numbered(i)) })
	}
	all.Wait()
	return errors.Join(failed...)
}

func (g golden) fill(ctx context.Context, disk localdisk.Disk) error {
	file := filepath.Join(g.service.Layout.Status(), disk.Domain+".job")
	job, err := json.Marshal(localdisk.Job{ID: disk.Domain, Disk: disk})
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, job, 0o600); err != nil {
		return err
	}
	return g.service.Fill(ctx, file)
}

// clear removes all copies, of which one template must have been made, and that;
// if it is asked for, once they were compared with their sources.
func (g golden) clear(ctx context.Context, domains int, compare bool) error {
	templates, err := g.service.Templates(ctx)
	if err != nil || len(templates) != 1 || templates[0].Clones != domains {
		return errors.Join(fmt.Errorf("templates: %+v", templates), err)
	}
	entries, err := g.service.List(ctx)
	if err != nil || len(entries) != domains {
		return errors.Join(fmt.Errorf("%d copies", len(entries)), err)
	}
	for _, e := range entries {
		if err := g.compare(ctx, e, compare); err != nil {
			return err
		}
		if err := g.service.Remove(ctx, e.Domain, e.Key, localdisk.GiveUp{}); err != nil {
			return err
		}
	}
	return g.service.EvictTemplate(ctx, templates[0].Name, localdisk.WipeNone)
}

func (g golden) compare(ctx context.Context, e localdisk.Entry, wanted bool) error {
	if !wanted {
		return nil
	}
	err := shell(ctx, `
			case $2 in /dev/*) lvm lvchange -q -ay -K "${2#/dev/}";; esac
			qemu-img compare -q -f "$3" -F qcow2 "$2" "$1"
			case $2 in /dev/*) lvm lvchange -q -an "${2#/dev/}";; esac`, e.Receipt.Source[0].Path, e.Copy.Path, g.format)
	if err != nil {
		return fmt.Errorf("%s differs from its source: %w", e.Copy.Path, err)
	}
	return nil
}

// thinInGuest is the same with thin volumes, once, and with fewer domains.
func thinInGuest(ctx context.Context, out io.Writer) error {
	service, runs, err := setUp(ctx)
	if err != nil {
		return err
	}
	service.Config.Local.Cache = "auto"
	if err := makeGolden(ctx, images, thinDomains, thinBaseSize); err != nil {
		return err
	}
	g := golden{service: service, dir: images, format: imagecheck.Raw, disk: copyOf("vda"), domains: thinDomains}
	fmt.Fprintf(out, "  a base with %d MiB of data, and %d domains instead of %d, as all of it is emulated\n", thinBaseSize>>20, thinDomains, domains)
	var one, all filling
	for _, part := range []struct {
		name    string
		domains int
		took    *filling
	}{{"one domain, which makes the template", 1, &one}, {fmt.Sprintf("%d at once, one of which makes it", thinDomains), thinDomains, &all}} {
		if err := shell(ctx, "echo 3 >/proc/sys/vm/drop_caches"); err != nil {
			return err
		}
		runs.reset()
		from := time.Now()
		if err := g.fillAll(ctx, part.domains); err != nil {
			return err
		}
		*part.took = filling{time.Since(from), runs.took}
		fmt.Fprintf(out, "  %-40s %6.1f s, %3d LVM commands of %.1f s together\n", part.name, part.took.all.Seconds(), len(runs.lines), runs.took.Seconds())
		if err := g.clear(ctx, part.domains, true); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "  %.2f × the time of one; the copies were compared with their sources\n", ratio(all.all, one.all))
	return nil
}
