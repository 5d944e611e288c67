// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// copyRounds is how often each program copies each source; medians count.
const copyRounds = 3

// copySource is a chain to copy, and where to.
type copySource struct {
	name   string
	make   func(ctx context.Context, dir string) (chain []string, size int64, err error) // top first
	device bool                                                                          // onto a loop device, else into a new file
}

var copySources = []copySource{
	{"full qcow2, 768 MiB, to a file", fullImage, false},
	{"the same, to a device", fullImage, true},
	{"sparse qcow2, 384 MiB of 3 GiB, to a file", sparseImage, false},
	{"chain of three, 256 MiB of 1 GiB, to a device", chainOfThree, true},
	{"compressed qcow2, 192 MiB, to a file", compressedImage, false},
	{"sparse raw file, 256 MiB of 1 GiB, to a file", sparseRaw, false},
}

// copies holds the copy engine against what else copies images, each in a
// process of its own, with a cold source, a new target that reads zero, and
// everything on the disk at the end. CPU seconds are those of the processes.
func copies(ctx context.Context, out io.Writer) error {
	dir, err := os.MkdirTemp("/var/tmp", "diskhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	made := map[string]image{}
	for _, s := range copySources {
		key := fmt.Sprintf("%p", s.make)
		img, ok := made[key]
		if !ok {
			sub := filepath.Join(dir, fmt.Sprint(len(made)))
			if err := os.Mkdir(sub, 0o700); err != nil {
				return err
			}
			if img.chain, img.size, err = s.make(ctx, sub); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			made[key] = img
		}
		if err := compareCopies(ctx, out, s, img, dir); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return resumed(ctx, out, made[fmt.Sprintf("%p", copySources[0].make)], dir)
}

// image is a source that was made.
type image struct {
	chain []string // top first
	size  int64    // virtual, bytes
}

func compareCopies(ctx context.Context, out io.Writer, s copySource, img image, dir string) error {
	fmt.Fprintf(out, "  %s\n", s.name)
	programs := copyPrograms(img)
	costs := make([][]cost, len(programs))
	for range copyRounds {
		for i, p := range programs {
			c, err := measure(ctx, p, img, dir, s.device)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			costs[i] = append(costs[i], c)
		}
	}
	wall, cpu := medians(costs[0])
	best, bestName := time.Duration(0), ""
	var nbd time.Duration
	for i, p := range programs {
		w, c := medians(costs[i])
		fmt.Fprintf(out, "    %-34s %8.0f ms %8.0f ms CPU\n", p.name, milliseconds(w), milliseconds(c))
		if i > 0 && (best == 0 || w < best) {
			best, bestName = w, p.name
		}
		if p.name == nbdName {
			nbd = c
		}
	}
	fmt.Fprintf(out, "    diskhook: %.2f × the time of the best (%s), %.2f × the CPU of %s\n", ratio(wall, best), bestName, ratio(cpu, nbd), nbdName)
	return nil
}

func medians(costs []cost) (wall, cpu time.Duration) {
	var walls, cpus []time.Duration
	for _, c := range costs {
		walls, cpus = append(walls, c.wall), append(cpus, c.cpu)
	}
	return median(walls), median(cpus)
}

// resumed measures what is left of a copy that was stopped after 90 %.
func resumed(ctx context.Context, out io.Writer, img image, dir string) error {
	var whole, rest []time.Duration
	for range copyRounds {
		target := filepath.Join(dir, "target")
		for _, step := range []struct {
			into *[]time.Duration
			args []string
		}{{&whole, []string{"-cursor"}}, {nil, nil}, {nil, []string{"-cursor", "-stop", "90"}}, {&rest, []string{"-cursor"}}} {
			if step.args == nil { // from the beginning
				if err := removeAll(target, target+".cursor"); err != nil {
					return err
				}
				continue
			}
			if err := evict(img.chain); err != nil {
				return err
			}
			c, err := run1(ctx, engineArgv(img, target, step.args...))
			if err != nil {
				return fmt.Errorf("resume: %w", err)
			}
			if step.into != nil {
				*step.into = append(*step.into, c.wall)
			}
		}
		if err := removeAll(target, target+".cursor"); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "  resume after 90 %% of the full qcow2: %.0f ms, %.2f of the whole copy with a cursor (%.0f ms)\n",
		milliseconds(median(rest)), ratio(median(rest), median(whole)), milliseconds(median(whole)))
	return nil
}

func removeAll(paths ...string) error {
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	return nil
}

// program is one way to copy.
type program struct {
	name   string
	server []string // serves the source while argv runs; nil for most
	argv   func(target string) []string
}

const nbdName = "nbdcopy"

// copyPrograms are the contestants, ours first.
func copyPrograms(img image) []program {
	top := img.chain[0]
	format := formatOf(top)
	convert := func(options ...string) func(string) []string {
		return func(target string) []string {
			return slices.Concat([]string{"qemu-img", "convert"}, options, []string{"-n", "--target-is-zero", "-f", format, "-O", "raw", top, target})
		}
	}
	socket := filepath.Join(filepath.Dir(top), "nbd.sock")
	all := []program{
		{name: "diskhook", argv: func(target string) []string { return engineArgv(img, target) }},
		{name: "qemu-img convert, flushed", argv: convert("-t", "writeback")},
		{name: "qemu-img convert -t none -T none -W", argv: convert("-t", "none", "-T", "none", "-W")},
		{
			name:   nbdName,
			server: []string{"qemu-nbd", "-r", "-t", "-e", "16", "-k", socket, "--cache=none", "--aio=native", "-f", format, top},
			argv: func(target string) []string {
				return []string{"nbdcopy", "--flush", "--destination-is-zero", "nbd+unix:///?socket=" + socket, target}
			},
		},
	}
	if format == "raw" {
		// cp cannot write into what is there without reading it first.
		all = append(all, program{name: "cp --sparse=always, flushed", argv: func(target string) []string {
			return []string{"sh", "-c", `cp --sparse=always --reflink=never "$1" "$2" && sync "$2"`, "sh", top, target}
		}})
	}
	return all
}
