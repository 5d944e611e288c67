// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/thin/layout"
	"diskhook/storage/thin/metadata"
)

// mappingsEnv asks for pools of another size than a million and ten million
// mappings; a hundred million take thin_restore a quarter of an hour.
const mappingsEnv = "DISKHOOK_BENCH_MAPPINGS"

// thinMetadata holds the codec of dm-thin metadata against
// thin-provisioning-tools, each in a process of its own, on the same XML and
// the same image. Ours has the image on the disk at the end.
func thinMetadata(ctx context.Context, out io.Writer) error {
	sizes := []uint64{1_000_000, 10_000_000}
	if text := os.Getenv(mappingsEnv); text != "" {
		n, err := strconv.ParseUint(text, 10, 40)
		if err != nil {
			return fmt.Errorf("%s: %w", mappingsEnv, err)
		}
		sizes = []uint64{n}
	}
	for _, n := range sizes {
		for _, length := range []uint64{1, 8, n} {
			if err := compareMetadata(ctx, out, n, length); err != nil {
				return err
			}
		}
	}
	return nil
}

func compareMetadata(ctx context.Context, out io.Writer, n, length uint64) error {
	dir, err := os.MkdirTemp("/var/tmp", "diskhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image, theirs, ourXML, theirXML := filepath.Join(dir, "image"), filepath.Join(dir, "theirs"),
		filepath.Join(dir, "ours.xml"), filepath.Join(dir, "theirs.xml")
	for _, path := range []string{image, theirs} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(path, int64(metadataBlocks(n))*metadata.BlockSize); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "  %d mappings in runs of %d\n", n, length)
	ours := func(args ...string) []string { return append([]string{self(), thinChild}, args...) }
	costs := map[string]metadataCost{}
	for _, step := range []struct {
		name string
		argv []string
	}{
		{"build", ours("build", image, fmt.Sprint(n), fmt.Sprint(length))},
		{"read", ours("read", image)},
		{"check", ours("check", image)},
		{"thin_check", []string{"thin_check", "-q", image}},
		{"dump", ours("dump", image, ourXML)},
		{"thin_dump", []string{"thin_dump", "-o", theirXML, image}},
		{"restore", ours("restore", ourXML, image)},
		{"thin_restore", []string{"thin_restore", "-q", "-i", theirXML, "-o", theirs}},
	} {
		c, err := runMeasured(ctx, step.argv)
		if err != nil {
			return err
		}
		costs[step.name] = c
		fmt.Fprintf(out, "    %-14s %9.0f ms %8.2f M mappings/s %6d MiB of memory\n",
			step.name, milliseconds(c.wall), float64(n)/c.wall.Seconds()/1e6, c.memory>>20)
	}
	if _, err := runMeasured(ctx, []string{"cmp", ourXML, theirXML}); err != nil {
		return err
	}
	fmt.Fprintf(out, "    of the tools' time: restore %.3f, dump %.3f, check %.3f; without XML: build %.3f, read %.3f\n",
		ratio(costs["restore"].wall, costs["thin_restore"].wall), ratio(costs["dump"].wall, costs["thin_dump"].wall),
		ratio(costs["check"].wall, costs["thin_check"].wall),
		ratio(costs["build"].wall, costs["thin_restore"].wall), ratio(costs["read"].wall, costs["thin_dump"].wall))
	return nil
}

// metadataBlocks is enough for thin_restore, which leaves nodes half empty.
func metadataBlocks(mappings uint64) uint64 { return mappings*40/metadata.BlockSize + 4096 }

type metadataCost struct {
	wall   time.Duration
	memory int64 // most that was resident, bytes
}

func runMeasured(ctx context.Context, argv []string) (metadataCost, error) {
	proc := exec.CommandContext(ctx, argv[0], argv[1:]...)
	from := time.Now()
	if said, err := proc.CombinedOutput(); err != nil {
		return metadataCost{}, fmt.Errorf("%s: %w: %s", command.Quote(argv), err, said)
	}
	usage, ok := proc.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return metadataCost{}, errors.New("no resource usage on this system")
	}
	return metadataCost{time.Since(from), usage.Maxrss << 10}, nil
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// thinChild is the name by which this program is its own contestant:
// thin-metadata-child build IMAGE N LENGTH | read IMAGE | check IMAGE |
// dump IMAGE XML | restore XML IMAGE.
const thinChild = "thin-metadata-child"

func thinMetadataChild(ctx context.Context, args []string) error {
	verb, path := args[0], args[1]
	if verb == "restore" {
		path = args[2]
	}
	image, err := layout.Open(path, verb == "build" || verb == "restore")
	if err != nil {
		return err
	}
	defer image.Close()
	switch verb {
	case "build":
		n, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return err
		}
		length, err := strconv.ParseUint(args[3], 10, 64)
		if err != nil {
			return err
		}
		return buildMetadata(image, n, length)
	case "read":
		return readMetadata(image)
	case "check":
		report, err := metadata.Check(ctx, image, uint64(image.Size())/metadata.BlockSize, metadata.CheckOptions{})
		if len(report.Problems) > 0 {
			return errors.New(report.Problems[0].Text)
		}
		return err
	case "dump":
		xml, err := os.Create(args[2])
		if err != nil {
			return err
		}
		return errors.Join(dumpMetadata(ctx, image, xml), xml.Close())
	case "restore":
		xml, err := os.Open(args[1])
		if err != nil {
			return err
		}
		defer xml.Close()
		return restoreMetadata(ctx, xml, image)
	}
	return fmt.Errorf("no such child: %s", verb)
}

// buildMetadata maps n blocks in runs of this length, no two of which lie side
// by side.
func buildMetadata(to metadata.Target, n, length uint64) error {
	b, err := metadata.NewBuilder(to, metadataBlocks(n), metadata.Superblock{Time: 1, DataBlockSize: 128, DataBlocks: n})
	if err != nil {
		return err
	}
	if err := b.Device(metadata.Device{ID: 1, SnapTime: 1}); err != nil {
		return err
	}
	for at := uint64(0); at < n; {
		run := metadata.Run{Origin: at, Length: min(length, n-at), Time: 1}
		run.Data = n - at - run.Length
		if err := b.Map(run); err != nil {
			return err
		}
		at += run.Length
	}
	return b.Finish()
}

func readMetadata(image io.ReaderAt) error {
	r, err := metadata.Open(image)
	if err != nil {
		return err
	}
	var n uint64
	for run, err := range r.Mappings(1) {
		if err != nil {
			return err
		}
		n += run.Length
	}
	if n != r.Superblock().DataUsed {
		return fmt.Errorf("read %d mappings of %d", n, r.Superblock().DataUsed)
	}
	return nil
}

func dumpMetadata(ctx context.Context, image io.ReaderAt, xml io.Writer) error {
	r, err := metadata.Open(image)
	if err != nil {
		return err
	}
	x, err := metadata.NewXMLWriter(xml, r.Superblock())
	if err != nil {
		return err
	}
	if err := r.Stream(ctx, x); err != nil {
		return err
	}
	return x.Finish()
}

func restoreMetadata(ctx context.Context, xml io.Reader, image metadata.Target) error {
	return metadata.ReadXML(ctx, xml, func(sb metadata.Superblock) (metadata.Sink, error) {
		return metadata.NewBuilder(image, metadataBlocks(sb.DataBlocks), sb)
	})
}
