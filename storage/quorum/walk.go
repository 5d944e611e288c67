// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"diskhook/storage/directio"
	"diskhook/storage/failure"
	"diskhook/storage/nbd"
	"diskhook/storage/progress"
)

const (
	// chunkBytes is what is read of each replica at a time.
	chunkBytes = 1 << 20
	// blockBytes is the unit of the vote: a sector of today's disks, which is
	// written as a whole or not at all.
	blockBytes = 4096
)

// image is what a walk needs of a replica.
type image interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	WriteZeroes(off, n int64) error
	Next(off, n int64) (nbd.Extent, error)
}

// walk reads replicas side by side and votes on each block.
type walk struct {
	size  int64
	sides []*side
	need  int // how many voters must agree

	// repair writes what the vote says to whoever differs. A block without a
	// majority is never written.
	repair   bool
	progress progress.Func

	none ranges // no majority
	read int64  // of each replica
}

// side is one replica in a walk.
type side struct {
	id string
	image
	votes   bool // else it is held against those who do
	differs ranges

	buf  []byte
	zero bool    // as known up to end
	end  int64   // of the extent that it is in
	fix  []Range // of the chunk: what is to be written
	bad  []bool  // by block of the chunk: it cannot be read
}

func newWalk(size int64, need int) *walk { return &walk{size: size, need: need} }

// add brings a replica in.
func (w *walk) add(id string, i image, votes bool) {
	w.sides = append(w.sides, &side{id: id, image: i, votes: votes, buf: directio.Buffer(chunkBytes)})
}

// over walks through pieces of the disk; nil is all of it.
func (w *walk) over(ctx context.Context, pieces []Range) error {
	if pieces == nil {
		pieces = []Range{{0, w.size}}
	}
	for _, p := range pieces {
		for _, s := range w.sides {
			s.end = 0
		}
		for off := p.Offset; off < p.end(); {
			if err := stopped(ctx); err != nil {
				return err
			}
			n, err := w.step(off, p.end())
			if err != nil {
				return err
			}
			off += n
			if w.progress != nil {
				w.progress(off, w.size)
			}
		}
	}
	return nil
}

// step handles what begins at off, and returns how much that was.
func (w *walk) step(off, end int64) (int64, error) {
	if err := w.each(func(s *side) error { return s.look(off, w.size) }); err != nil {
		return 0, err
	}
	if hole := w.hole(off, end); hole > 0 {
		return hole, nil
	}
	n := min(chunkBytes, end-off)
	if err := w.each(func(s *side) error { return s.fetch(off, n) }); err != nil {
		return 0, err
	}
	w.read += n
	for at := int64(0); at < n; at += blockBytes {
		w.vote(off, at, min(at+blockBytes, n))
	}
	return n, w.each(func(s *side) error { return s.mend(off) })
}

// each does work for all replicas side by side.
func (w *walk) each(work func(*side) error) error {
	failed := make([]error, len(w.sides))
	var pending sync.WaitGroup
	for i, s := range w.sides {
		pending.Go(func() {
			if err := work(s); err != nil {
				failed[i] = fmt.Errorf("replica %s: %w", s.id, err)
			}
		})
	}
	pending.Wait()
	return errors.Join(failed...)
}

// hole says how much from off on is zero in all replicas, which nobody reads.
func (w *walk) hole(off, end int64) int64 {
	for _, s := range w.sides {
		if !s.zero {
			return 0
		}
		end = min(end, s.end)
	}
	return end - off
}

// look finds out in what kind of extent off is.
func (s *side) look(off, size int64) error {
	if s.end > off {
		return nil
	}
	x, err := s.Next(off, size-off)
	if err != nil {
		return err
	}
	s.zero, s.end = x.Zero, off+x.Len
	return nil
}

// fetch fills the buffer with [off, off+n). What a disk cannot read does not
// vote, and differs from whatever does.
func (s *side) fetch(off, n int64) error {
	s.buf, s.bad = s.buf[:n], s.bad[:0]
	if s.zero && s.end >= off+n {
		clear(s.buf)
		return nil
	}
	_, err := s.ReadAt(s.buf, off)
	if !ioError(err) {
		return err
	}
	for at := int64(0); at < n; at += blockBytes {
		_, err := s.ReadAt(s.buf[at:min(at+blockBytes, n)], off+at)
		if err != nil && !ioError(err) {
			return err
		}
		s.bad = append(s.bad, err != nil)
	}
	return nil
}

// ioError says that the server answered, and that its image did not.
func ioError(err error) bool {
	var said *nbd.Error
	return errors.As(err, &said)
}

// reads says whether the block at from of the chunk could be read.
func (s *side) reads(from int64) bool { return len(s.bad) == 0 || !s.bad[from/blockBytes] }

// vote compares the block [from, to) of the chunk at off.
func (w *walk) vote(off, from, to int64) {
	truth := w.majority(from, to)
	if truth == nil {
		w.none.add(off+from, to-from)
		return
	}
	for _, s := range w.sides {
		if s.reads(from) && bytes.Equal(s.buf[from:to], truth) {
			continue
		}
		s.differs.add(off+from, to-from)
		if !w.repair {
			continue
		}
		copy(s.buf[from:to], truth)
		if last := len(s.fix) - 1; last >= 0 && s.fix[last].end() == off+from {
			s.fix[last].Length += to - from
		} else {
			s.fix = append(s.fix, Range{off + from, to - from})
		}
	}
}

// majority is what enough voters have in a block, nil if too few agree.
func (w *walk) majority(from, to int64) []byte {
	for i, s := range w.sides {
		if !s.votes || !s.reads(from) {
			continue
		}
		agree := 1
		for _, other := range w.sides[i+1:] {
			if other.votes && other.reads(from) && bytes.Equal(s.buf[from:to], other.buf[from:to]) {
				agree++
			}
		}
		if agree >= w.need {
			return s.buf[from:to]
		}
	}
	return nil
}

// mend writes what was found to differ in the chunk at off; the buffer has what
// is right. Zeros are not written one by one, so that a new image stays sparse.
func (s *side) mend(off int64) error {
	for _, r := range s.fix {
		right := s.buf[r.Offset-off : r.end()-off]
		var err error
		if isZero(right) {
			err = s.WriteZeroes(r.Offset, r.Length)
		} else {
			_, err = s.WriteAt(right, r.Offset)
		}
		if err = failure.Full(err); errors.Is(err, failure.NoSpace) {
			err = failure.Hint(err, "free space there, then run the same command again")
		}
		if err != nil {
			return err
		}
	}
	if len(s.fix) > 0 {
		s.fix, s.end = s.fix[:0], 0
	}
	return nil
}

func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
