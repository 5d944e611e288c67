// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"diskhook/storage/quorum"
)

// quorums measures a guest's random reads and writes on a plain file and on
// three replicas in each way in which a domain may have them.
//
// Who drives the I/O decides whether such ratios are honest. An emulated guest
// is so slow that all disks look alike to it; `qemu-img bench` and an NBD client
// leave out the virtqueue, which makes the plain file look faster than any guest
// sees it, and cannot drive vhost-user at all. So every disk here is reached in
// the same way, by a virtqueue (blockGuest), and QEMU's place is taken by a
// qemu-storage-daemon, which has the same block layer and the same device code:
//
//	plain              guest ═ QEMU ─ file
//	inline             guest ═ QEMU ─ vote over three files
//	export, nbd        guest ═ QEMU ─ nbd ─ diskhook quorum serve ─ vote over three files
//	export, vhost-user guest ═ diskhook quorum serve ─ vote over three files
//
// ═ is shared memory and two eventfds. The exports are served by diskhook
// itself. What is missing is the cost of a processor that leaves the guest, the
// same for all. All files are on one disk, opened past the page cache: where
// each replica has a disk of its own, large requests cost less than here.
func quorums(ctx context.Context, out io.Writer) (err error) {
	// A socket's name is short.
	work, err := os.MkdirTemp("/var/tmp", "dhq.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := quorumBench{dir: work}
	fmt.Fprintf(out, "  requests at random places of %d MiB, raw files on one disk, three replicas; the best of %d turns\n", quorumSize>>20, quorumTurns)
	if err := b.make(ctx); err != nil {
		return err
	}
	variants := b.variants()
	best := make([][]float64, len(variants))
	for i := range best {
		best[i] = make([]float64, len(accesses))
	}
	for range quorumTurns {
		for i, v := range variants {
			if err := b.measure(ctx, v, best[i]); err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	printQuorums(out, variants, best)
	return nil
}

const (
	quorumSize  = 256 << 20
	quorumTurns = 6
	// quorumTime is how long each kind of access is measured in a turn.
	quorumTime = 200 * time.Millisecond
)

// accesses are what is measured, in the order of the tables' columns.
var (
	accesses = accessesOf([]int{1, 16}, 4<<10, 64<<10, 1<<20)
	columns  = len(accesses) / 2
)

func accessesOf(depths []int, sizes ...int) (all []access) {
	for _, depth := range depths {
		for _, write := range []bool{false, true} {
			for _, size := range sizes {
				all = append(all, access{write, size, depth})
			}
		}
	}
	return all
}

// quorumVariant is a way to have a disk.
type quorumVariant struct {
	name string
	// open serves the disk at a vhost-user socket until it is closed.
	open func(context.Context) (socket string, closed func() error, err error)
}

// measure opens a variant, does every kind of access, and keeps what is better
// than in earlier turns, in requests a second.
func (b *quorumBench) measure(ctx context.Context, v quorumVariant, best []float64) (err error) {
	socket, closed, err := v.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closed()) }()
	deepest, largest := 0, 0
	for _, a := range accesses {
		deepest, largest = max(deepest, a.depth), max(largest, a.size)
	}
	guest, err := connectGuest(ctx, socket, deepest, largest)
	if err != nil {
		return err
	}
	defer guest.close()
	for i, a := range accesses {
		if err := ctx.Err(); err != nil {
			return err
		}
		rate, err := guest.run(a, quorumSize, quorumTime)
		if err != nil {
			return err
		}
		best[i] = max(best[i], rate)
	}
	return nil
}

// printQuorums prints a table for each depth: requests a second of the plain
// file, and what share of them the others reach.
func printQuorums(out io.Writer, variants []quorumVariant, best [][]float64) {
	for from := 0; from < len(accesses); from += columns {
		fmt.Fprintf(out, "\n  %-28s", fmt.Sprintf("%d at a time", accesses[from].depth))
		for _, a := range accesses[from : from+columns] {
			fmt.Fprintf(out, " %14s", a)
		}
		fmt.Fprintln(out)
		for i, v := range variants {
			fmt.Fprintf(out, "  %-28s", v.name)
			for c := from; c < from+columns; c++ {
				if i == 0 {
					fmt.Fprintf(out, " %12.0f/s", best[i][c])
				} else {
					fmt.Fprintf(out, " %12.2f ×", best[i][c]/best[0][c])
				}
			}
			fmt.Fprintln(out)
		}
	}
}

// patterns are the two ways to read, and the sets that do so.
var patterns = []struct{ pattern, set string }{{quorum.Vote, "vote"}, {quorum.FIFO, "fifo"}}

// variants are all of them, the plain file first.
func (b *quorumBench) variants() []quorumVariant {
	all := []quorumVariant{{"plain", func(ctx context.Context) (string, func() error, error) {
		return b.device(ctx, rawFile("disk", filepath.Join(b.dir, "plain.raw")))
	}}}
	for _, how := range []struct {
		name string
		open func(context.Context, string) (string, func() error, error)
	}{{"inline", b.inline}, {"export, nbd", b.overNBD}, {"export, vhost-user", b.overVhost}} {
		for _, p := range patterns {
			all = append(all, quorumVariant{how.name + ", " + p.pattern, func(ctx context.Context) (string, func() error, error) {
				return how.open(ctx, p.set)
			}})
		}
	}
	return all
}
