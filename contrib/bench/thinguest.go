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
	"sync"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/directio"
	"diskhook/storage/lvm"
	"diskhook/storage/thin/cluster"
	"diskhook/storage/thin/devmapper"
	"diskhook/storage/thin/layout"
)

// thinVolumesInGuest runs in the test guest only, as root: a cluster on a volume
// group on /dev/vdb, with the kernel's dm-thin. Somebody writes to a volume all the
// time; how long its longest write took is the pause of a hand-over.
func thinVolumesInGuest(ctx context.Context, out io.Writer) error {
	if err := shell(ctx, "modprobe dm-thin-pool; vgcreate -q lun /dev/vdb"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/var/tmp", "diskhook-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := cluster.New("bench")
	d.VG = "lun"
	volumes := &lvm.LVM{Run: command.System{Log: slog.New(slog.DiscardHandler)}, Timeout: 10 * time.Minute}
	b, err := newThinBench(ctx, dir, d.UUID, d.Group(volumes, "/dev"), devmapper.Kernel{}, 130_000)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  a cluster of %d blocks, with a volume that is written to without a break\n", b.blocks)
	w := &thinWriter{}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx, b.Path("guest")) }()
	select {
	case err := <-ended:
		return fmt.Errorf("a guest's writes: %w", err)
	case <-time.After(10 * time.Second):
	}
	fmt.Fprintf(out, "  the longest of the writes of a guest in 10 s in which nothing happens: %.1f ms\n", milliseconds(w.longest()))
	var first thinTimes
	for i, n := range []uint64{10_000, 100_000} {
		t, err := b.measure(ctx, n, w.longest)
		if err != nil {
			stop()
			return errors.Join(err, <-ended)
		}
		if i == 0 {
			first = t
		}
		t.print(out, n, first)
	}
	stop()
	return <-ended
}

// thinWriter writes 4 KiB at a time to a volume, past the page cache.
type thinWriter struct {
	mu    sync.Mutex
	from  time.Time // the write that is under way began
	most  time.Duration
	done  int
	ended bool
}

func (w *thinWriter) run(ctx context.Context, path string) error {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = true
	}()
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	v, err := layout.Open(path, true)
	if err != nil {
		return err
	}
	b := directio.Buffer(4096)
	for at := int64(0); err == nil && ctx.Err() == nil; at = (at + thinBlock) % (guestSize * thinBlock) {
		w.note(true)
		_, err = v.WriteAt(b, at)
		w.note(false)
	}
	return errors.Join(err, v.Close())
}

func (w *thinWriter) note(begins bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if !begins {
		w.most = max(w.most, now.Sub(w.from))
		w.done++
	}
	w.from = now
}

// longest is how long the longest write took since it was asked last, the one that is
// under way included.
func (w *thinWriter) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	for until := w.done + 2; w.done < until && !w.ended; {
		w.mu.Unlock()
		time.Sleep(time.Millisecond)
		w.mu.Lock()
	}
	most := w.most
	w.most = 0
	return most
}
