// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"errors"
	"time"

	"diskhook/storage/imagecheck"
	"diskhook/storage/qemuimg"
)

// rangeSize is what one qemu-img copies of a disk. Each costs a start and an
// end, where its parallel requests run dry; a stopped copy repeats one. So a
// disk is some eight, and a large one pieces that are large enough.
func rangeSize(disk int64) int64 {
	const least, most = 64 << 20, 1 << 30
	return min(max(least, (disk/8)&^(chunkSize-1)), most)
}

// worthLeavingOut is the least that is left out between two ranges: what the
// target has already is rather written again than split for.
const worthLeavingOut = 16 << 20

func (c *copying) qemuImg() qemuimg.QemuImg { return qemuimg.QemuImg{Run: c.Run, User: c.o.User} }

func (c *copying) convertOptions() qemuimg.ConvertOptions {
	o := convertOptions(c.source, c.target)
	o.Rate, o.Locks, o.Progress, o.Total, o.Note = c.o.Rate, c.o.Locks, c.o.Progress, c.source.Size, c.note
	return o
}

func convertOptions(source Source, target Target) qemuimg.ConvertOptions {
	return qemuimg.ConvertOptions{
		Source: source.Layers, SourceFiles: source.Files,
		Target: target.Path, TargetFormat: imagecheck.Raw,
		TargetExists: true, TargetSize: source.Size, TargetIsZero: target.Zeroed && source.Present == 0,
	}
}

// whole lets one qemu-img do it all.
func (c *copying) whole(ctx context.Context) error {
	if err := c.begin(Whole); err != nil {
		return err
	}
	q := c.qemuImg()
	c.result.Copied = c.source.Size
	return c.child(ctx, func() error { return q.Convert(ctx, c.convertOptions()) })
}

// child runs a program that the I/O class is for. The Runner leaves it behind
// if need be, which takes a moment longer than do waits.
func (c *copying) child(ctx context.Context, run func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- c.session.do(context.WithoutCancel(ctx), c.target.Path, c.o.IOClass, run)
	}()
	return <-done
}

// ranges lets qemu-img copy one range after the other.
func (c *copying) ranges(ctx context.Context) error {
	q := c.qemuImg()
	todo := []span{{0, c.source.Size}}
	if c.source.Present > 0 {
		extents, err := q.Map(ctx, c.source.Layers, c.source.Files)
		if err != nil {
			return err
		}
		base, err := c.baseSize(ctx)
		if err != nil {
			return err
		}
		todo = missing(extents, len(c.source.Layers)-c.source.Present, base, c.source.Size, c.target.Zeroed)
	}
	var lost *cannotError
	switch err := c.keep(between(todo, c.source.Size)); {
	case errors.As(err, &lost):
		c.distrust(lost.why)
		return c.ranges(ctx)
	case err != nil:
		return err
	}
	if err := c.begin(Ranges); err != nil {
		return err
	}
	done := c.cursor.Done
	report := func(at int64) {
		if c.o.Progress != nil {
			c.o.Progress(at, c.source.Size)
		}
	}
	last := time.Now()
	for _, r := range cut(todo, done, rangeSize(c.source.Size)) {
		o := c.convertOptions()
		o.Offset, o.Length = r.from, r.end-r.from
		o.Progress = func(part, _ int64) { report(r.from + int64(float64(part)/float64(c.source.Size)*float64(o.Length))) }
		if err := c.child(ctx, func() error { return q.Convert(ctx, o) }); err != nil {
			return errors.Join(err, c.mark(done, nil))
		}
		c.result.Copied += o.Length
		done = r.end &^ (chunkSize - 1)
		if time.Since(last) < c.every() {
			continue
		}
		if err := c.mark(done, nil); err != nil {
			return err
		}
		last = time.Now()
	}
	report(c.source.Size)
	c.result.Skipped = c.source.Size - c.result.Copied - c.result.Resumed
	return nil
}

// baseSize is the size of the disk that the layers show that are there.
func (c *copying) baseSize(ctx context.Context) (size int64, err error) {
	err = c.session.do(ctx, c.name(), IODefault, func() error {
		own := len(c.source.Layers) - c.source.Present
		size, err = virtualSize(c.source.Layers[own], c.images[own])
		return err
	})
	return min(size, c.source.Size), err
}

// span is a range of the disk.
type span struct{ from, end int64 }

// missing lists what is not decided by the layers from depth own on, which the
// target has, or lies beyond their disk of base bytes. There the target may be
// blank, so that zeros are there as well.
func missing(extents []qemuimg.Extent, own int, base, size int64, blank bool) []span {
	var todo []span
	add := func(from, end int64) {
		if from >= end {
			return
		}
		// Whole chunks, so that the cursor can stand between them.
		from, end = from&^(chunkSize-1), min(size, (end+chunkSize-1)&^(chunkSize-1))
		if last := len(todo) - 1; last >= 0 && from-todo[last].end < worthLeavingOut {
			todo[last].end = max(end, todo[last].end)
		} else {
			todo = append(todo, span{from, end})
		}
	}
	for _, x := range extents {
		end := min(x.Start+x.Length, size)
		if x.Depth < own {
			add(x.Start, min(end, base))
		}
		if !blank || !x.Zero {
			add(max(base, x.Start), end)
		}
	}
	return todo
}

// cut makes ranges of at most size bytes of what lies above done.
func cut(todo []span, done, size int64) []span {
	var ranges []span
	for _, r := range todo {
		for from := max(r.from, done); from < r.end; from += size {
			ranges = append(ranges, span{from, min(from+size, r.end)})
		}
	}
	return ranges
}
