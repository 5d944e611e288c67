// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"

	"diskhook/storage/directio"
	"diskhook/storage/failpoint"
	"diskhook/storage/qcow2map"
)

// How the native copy cuts its work. Units begin at whole chunks.
const (
	workers     = 4         // with a window each in flight they fill 10 Gbit/s at 3 ms; on local disks more gain nothing
	windowSize  = 1 << 20   // what is read, looked at for zeros and written at once
	maxHole     = 256 << 20 // a longer hole is more than one unit
	zeroGrain   = 64 << 10  // zeros in data are left out in pieces of this; thin pools allocate no less
	smallestGap = 64 << 10  // a shorter hole within data is written as zeros
)

// native copies a chain by reading its layers' files itself.
type native struct {
	chain  *chainMap
	into   *sink
	start  int64
	limit  *limiter
	ledger *ledger
	sums   bool // digest the chunks
	class  IOClass
}

// unit is a piece of the disk that one worker does, of whole chunks.
type unit struct {
	off, end int64
	hole     bool     // the whole of it is zero or present
	extents  []extent // otherwise: what it consists of
}

// run copies everything from start on. When it fails, or ctx ends, the units
// under way are stopped before their next write.
func (n *native) run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	units := make(chan unit)
	var all sync.WaitGroup
	start := func(work func() error) {
		all.Go(func() {
			runtime.LockOSThread() // it has the I/O class, and ends with the goroutine
			if err := n.class.set(); err != nil {
				cancel(err)
			} else if err := work(); err != nil {
				cancel(err)
			}
		})
	}
	start(func() error { defer close(units); return n.plan(ctx, units) })
	for range workers {
		w := &worker{native: n, buf: directio.Buffer(windowSize)}
		start(func() error { return w.work(ctx, units) })
	}
	all.Wait()
	if err := parent.Err(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// plan cuts the disk into units, in order.
func (n *native) plan(ctx context.Context, units chan<- unit) error {
	var x extent
	for off := n.start; off < n.chain.size; {
		u := unit{off: off, end: min(off+chunkSize, n.chain.size)}
		for at := off; at < u.end; at = x.end() {
			if x.length == 0 || x.end() <= at {
				var err error
				if x, err = n.next(at); err != nil {
					return err
				}
			}
			if at == off && x.kind != data && x.end() >= u.end {
				u.hole = true
				u.end = min(x.end(), off+maxHole)
				if u.end != n.chain.size {
					u.end -= (u.end - off) % chunkSize
				}
				u.extents = []extent{x.clip(off, u.end)}
				break
			}
			u.extents = append(u.extents, x.clip(off, u.end))
		}
		off = u.end
		select {
		case units <- u:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// next is chain.next with what belongs together in one piece.
func (n *native) next(off int64) (extent, error) {
	x, err := safely(func() (extent, error) { return n.chain.next(off) })
	for err == nil && x.kind != data && x.end() < n.chain.size && x.length < maxHole {
		more, err := safely(func() (extent, error) { return n.chain.next(x.end()) })
		if err != nil {
			return extent{}, err
		}
		if more.kind != x.kind {
			break
		}
		x.length += more.length
	}
	return x, err
}

// safely turns a panic over a hostile table into an error.
func safely[T any](work func() (T, error)) (value T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", qcow2map.ErrCorrupt, r)
		}
	}()
	return work()
}

// worker does one unit at a time.
type worker struct {
	*native
	buf []byte
	sum hash.Hash // of the chunk under way; nil if no digest is wanted
}

func (w *worker) work(ctx context.Context, units <-chan unit) error {
	for u := range units {
		sums, err := w.do(ctx, u)
		if err != nil {
			return err
		}
		w.ledger.finish(u.off, u.end, sums)
		if err := failpoint.Hit("transfer.chunk"); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) do(ctx context.Context, u unit) ([]chunkSum, error) {
	if u.hole {
		if err := w.hole(ctx, u.extents[0]); err != nil {
			return nil, err
		}
		return w.holeSums(u), nil
	}
	if w.sums {
		w.sum = sha256.New()
	}
	for off := u.off; off < u.end; off += windowSize {
		if err := w.window(ctx, off, min(off+windowSize, u.end), u.extents); err != nil {
			return nil, err
		}
	}
	if !w.sums {
		return nil, nil
	}
	return []chunkSum{chunkSum(w.sum.Sum(nil))}, nil
}

func (w *worker) holeSums(u unit) []chunkSum {
	if !w.sums {
		return nil
	}
	var sums []chunkSum
	for off := u.off; off < u.end; off += chunkSize {
		if len(sums) == 0 || u.end-off < chunkSize {
			sums = append(sums, zeroSum(min(chunkSize, u.end-off)))
		} else {
			sums = append(sums, sums[0])
		}
	}
	return sums
}

// window copies [from, end), at most windowSize: first what has to be
// written is brought together in the buffer, then it is written.
func (w *worker) window(ctx context.Context, from, end int64, extents []extent) error {
	pieces, err := w.read(ctx, from, end, extents)
	if err != nil {
		return err
	}
	for _, x := range pieces {
		b := w.buf[x.off-from : x.end()-from]
		if w.sum != nil {
			_, _ = w.sum.Write(b)
		}
		if x.kind != data {
			err = w.hole(ctx, x)
		} else {
			err = w.write(ctx, b, x.off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read fills the buffer and returns what it is about, in order. Zeros that are
// few, or do not begin and end at whole pages, count as data.
func (w *worker) read(ctx context.Context, from, end int64, extents []extent) ([]extent, error) {
	var pieces []extent
	add := func(k kind, from, end int64) {
		if last := len(pieces) - 1; last >= 0 && pieces[last].kind == k {
			pieces[last].length += end - from
		} else if from < end {
			pieces = append(pieces, extent{off: from, length: end - from, kind: k})
		}
	}
	for _, x := range extents {
		if x.end() <= from || x.off >= end {
			continue
		}
		x = x.clip(from, end)
		b := w.buf[x.off-from : x.end()-from]
		switch x.kind {
		case present:
			add(present, x.off, x.end())
		case data:
			if err := w.fetch(ctx, b, x); err != nil {
				return nil, err
			}
			add(data, x.off, x.end())
		case zero:
			begin := (x.off + directio.Align - 1) &^ (directio.Align - 1)
			stop := x.end() &^ (directio.Align - 1)
			if x.length < windowSize && stop-begin < smallestGap {
				begin, stop = x.end(), x.end()
			}
			clear(b)
			add(data, x.off, begin)
			add(zero, begin, stop)
			add(data, stop, x.end())
		}
	}
	return pieces, nil
}

// fetch reads data. What lies beyond the end of its file reads as zeros.
func (w *worker) fetch(ctx context.Context, b []byte, x extent) error {
	if err := w.limit.wait(ctx, int64(len(b))); err != nil {
		return err
	}
	n, err := x.from.ReadAt(b, x.at)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("at %d of the source: %w", x.off, err)
	}
	clear(b[n:])
	return nil
}

// blank says whether the target reads zero from off on, but for what the copy
// itself wrote. Layers that are there already have filled the beginning.
func (w *worker) blank(off int64) bool { return w.into.zeroed && off >= w.chain.base }

// hole makes what needs no reading be so in the target.
func (w *worker) hole(ctx context.Context, x extent) error {
	if x.kind == present || w.blank(x.off) {
		w.ledger.add(0, 0, x.length)
		return nil
	}
	if w.blank(x.end()) && x.end() > w.chain.base {
		if err := w.hole(ctx, x.clip(w.chain.base, x.end())); err != nil {
			return err
		}
		x = x.clip(x.off, w.chain.base)
	}
	if err := w.into.zero(ctx, x.off, x.length); err != nil {
		return err
	}
	w.ledger.add(0, x.length, 0)
	return nil
}

// write writes b but for the zeros in it that are worth leaving out.
func (w *worker) write(ctx context.Context, b []byte, off int64) error {
	worth := int64(zeroGrain)
	if !w.blank(off) {
		worth = windowSize // zeroing takes a request of its own
	}
	for len(b) > 0 {
		n, zeros := run(b, off, worth)
		var err error
		if zeros {
			err = w.hole(ctx, extent{off: off, length: n})
		} else if err = ctx.Err(); err == nil {
			if err = w.into.write(b[:n], off); err == nil {
				w.ledger.add(n, 0, 0)
			}
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}
