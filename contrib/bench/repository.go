// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"diskhook/storage/host"
	"diskhook/storage/repository"
)

const (
	repoRounds  = 5 // no more than a chain may have volumes until it is to be copied whole
	manyImages  = 100_000
	smallDisk   = 1 << 20
	largeDisk   = 512 << 20
	repoName    = "bench"
	virtualSize = 1 << 30
)

// repositories measures a repository in a directory beside what somebody would do
// by hand: qemu-img, a rename, and sync of the file and its directory; and beside a
// walk over the directories that reads each document once.
func repositories(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "diskhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &repoBench{dir: dir}
	if err := b.connect(ctx); err != nil {
		return err
	}
	if err := b.making(ctx, out); err != nil {
		return err
	}
	return b.looking(ctx, out)
}

type repoBench struct {
	dir     string
	service *repository.Service
	plain   int // how many images were made by hand
}

func (b *repoBench) at(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

func (b *repoBench) connect(ctx context.Context) error {
	layout := host.Layout{Root: b.at("root")}
	if err := layoutFor(layout); err != nil {
		return err
	}
	service, err := repository.New(layout, host.Defaults(layout), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	b.service = service
	where := map[string]string{"path": b.at("repository")}
	return errors.Join(
		service.CreateStorageRepository(ctx, "localfs-1.0", where),
		service.ConnectStorageRepository(ctx, repoName, "localfs-1.0", where),
		os.Mkdir(b.at("plain"), 0o700))
}

// disk makes a virtual disk with so many bytes of data, and the same by hand.
func (b *repoBench) disk(ctx context.Context, written int) (id, file string, err error) {
	id, err = b.service.CreateVirtualDisk(ctx, repoName, virtualSize, "", nil, repository.Options{})
	if err != nil {
		return "", "", err
	}
	at, err := b.service.PrepareImage(ctx, repoName, id, repository.Preparing{Holder: "bench", Write: true})
	if err != nil {
		return "", "", err
	}
	file = b.at("plain", fmt.Sprintf("%d.raw", written))
	data := bytes.Repeat([]byte("diskhook"), written/8)
	for _, path := range []string{at.Path, file} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return "", "", err
		}
		_, err = f.Write(data)
		if err := errors.Join(err, f.Truncate(virtualSize), f.Sync(), f.Close()); err != nil {
			return "", "", err
		}
	}
	return id, file, b.service.ReleaseImage(ctx, repoName, id, "bench")
}

// overlay is what one does by hand: an image made beside its place, flushed, and
// renamed.
func (b *repoBench) overlay(ctx context.Context, on string) error {
	b.plain++
	path := b.at("plain", fmt.Sprintf("%d.qcow2", b.plain))
	for _, argv := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", on, "-F", "raw", path + ".new", fmt.Sprint(virtualSize)},
		{"sync", path + ".new"}, {"mv", path + ".new", path}, {"sync", b.at("plain")},
	} {
		if said, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%q: %w: %s", argv, err, said)
		}
	}
	return nil
}

// making measures a disk on a snapshot, and snapshots of a disk with little and with
// much in it.
func (b *repoBench) making(ctx context.Context, out io.Writer) error {
	small, file, err := b.disk(ctx, smallDisk)
	if err != nil {
		return err
	}
	large, _, err := b.disk(ctx, largeDisk)
	if err != nil {
		return err
	}
	base, err := b.service.CreateSnapshot(ctx, repoName, small, nil, repository.Options{})
	if err != nil {
		return err
	}
	none := repository.Options{}
	took, err := inTurns(repoRounds, []func() error{
		func() error { return b.overlay(ctx, file) },
		func() error {
			_, err := b.service.CreateVirtualDisk(ctx, repoName, 0, base, nil, none)
			return err
		},
		func() error {
			_, err := b.service.CreateSnapshot(ctx, repoName, small, nil, none)
			return err
		},
		func() error {
			_, err := b.service.CreateSnapshot(ctx, repoName, large, nil, none)
			return err
		},
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  by hand: qemu-img create, sync, mv, sync    %8v\n", took[0].Round(time.Millisecond/10))
	for i, what := range []string{"disk on a snapshot, to its end", "snapshot of a disk with 1 MiB", "snapshot of a disk with 512 MiB"} {
		fmt.Fprintf(out, "  %-42s  %8v  %.2f × by hand\n", what, took[i+1].Round(time.Millisecond/10), ratio(took[i+1], took[0]))
	}
	fmt.Fprintf(out, "  snapshot with 512 times the data            %.2f ×\n", ratio(took[3], took[2]))
	return nil
}

// inTurns runs each action as often, one after the other, and returns the best times:
// most of one is waiting for the disk, which others use as well.
func inTurns(rounds int, actions []func() error) ([]time.Duration, error) {
	times := make([][]time.Duration, len(actions))
	for range rounds {
		for i, act := range actions {
			from := time.Now()
			if err := act(); err != nil {
				return nil, err
			}
			times[i] = append(times[i], time.Since(from))
		}
	}
	var best []time.Duration
	for _, t := range times {
		best = append(best, slices.Min(t))
	}
	return best, nil
}

// looking measures list and check of many images.
func (b *repoBench) looking(ctx context.Context, out io.Writer) error {
	if err := b.multiply(); err != nil {
		return err
	}
	images := 0
	took, err := inTurns(3, []func() error{
		b.walk,
		func() error {
			report, err := b.service.CheckStorageRepository(ctx, repoName)
			if images = report.Images; err == nil && len(report.Fixes)+len(report.Problems) > 0 {
				err = fmt.Errorf("%d fixes, %q", len(report.Fixes), report.Problems)
			}
			return err
		},
		func() error {
			for after, more := "", true; more; more = after != "" {
				page, err := b.service.ListImages(ctx, repoName, repository.Filter{After: after, Limit: 10000})
				if err != nil {
					return err
				}
				after = page.Next
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %d images: walk that reads all documents %8v\n", images, took[0].Round(time.Millisecond))
	for i, what := range []string{"check", "list"} {
		fmt.Fprintf(out, "  %-42s  %8v  %.2f × the walk\n", what, took[i+1].Round(time.Millisecond), ratio(took[i+1], took[0]))
	}
	return nil
}

// walk reads each image's and each volume's document once.
func (b *repoBench) walk() error {
	for _, folder := range []string{"images", "volumes"} {
		entries, err := os.ReadDir(b.at("repository", folder))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, err := os.ReadFile(b.at("repository", folder, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// multiply adds copies of what is in the repository, under other ids, until there are
// many images: their documents with their checksums (package repository), and files
// without data.
func (b *repoBench) multiply() error {
	type document struct{ folder, id, line string }
	var all []document
	kinds := map[string]string{} // of a volume
	for _, folder := range []string{"images", "volumes"} {
		entries, err := os.ReadDir(b.at("repository", folder))
		if err != nil {
			return err
		}
		for _, e := range entries {
			text, err := os.ReadFile(b.at("repository", folder, e.Name()))
			if err != nil {
				return err
			}
			line, _, _ := strings.Cut(string(text), "\n")
			all = append(all, document{folder, strings.TrimSuffix(e.Name(), ".json"), line})
		}
	}
	data, err := os.ReadDir(b.at("repository", "data"))
	if err != nil {
		return err
	}
	for _, e := range data {
		id, kind, _ := strings.Cut(e.Name(), ".")
		kinds[id] = kind
	}
	images := len(slices.DeleteFunc(slices.Clone(all), func(d document) bool { return d.folder != "images" }))
	for made := images; made < manyImages; made += images {
		var pairs []string
		for _, d := range all {
			pairs = append(pairs, d.id, uuid.NewString())
		}
		renamed := strings.NewReplacer(pairs...)
		for _, d := range all {
			line, id := renamed.Replace(d.line)+"\n", renamed.Replace(d.id)
			sum := crc32.Checksum([]byte(line), crc32.MakeTable(crc32.Castagnoli))
			err := os.WriteFile(b.at("repository", d.folder, id+".json"), fmt.Appendf([]byte(line), "crc32c %08x\n", sum), 0o600)
			if kind := kinds[d.id]; err == nil && kind != "" {
				err = os.WriteFile(b.at("repository", "data", id+"."+kind), nil, 0o600)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
