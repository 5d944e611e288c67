// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"diskhook/storage/blockdev"
	"diskhook/storage/directio"
)

// sink is the target as the native copy writes it: past the page cache where
// that goes, through it where a piece does not begin and end at whole pages.
// No page is written both ways at once, since pages belong to one worker.
type sink struct {
	f      *os.File // through the page cache
	direct *directio.File
	s      *session
	zeroed bool   // it may be taken as reading zero where nothing was written yet
	before func() // of tests; nil is nothing
}

// openSink opens f once more; the descriptor is closed with s.
func openSink(s *session, f *os.File, zeroed bool) (*sink, error) {
	// Of a description of its own: f stays as it is.
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	again := os.NewFile(uintptr(fd), f.Name())
	s.keep(func() { _ = again.Close() })
	return &sink{f: f, direct: directio.New(again), s: s, zeroed: zeroed}, nil
}

func (t *sink) write(b []byte, off int64) error {
	return t.s.writing(func() error { return t.writeNow(b, off) })
}

func (t *sink) writeNow(b []byte, off int64) error {
	if t.before != nil {
		t.before()
	}
	var err error
	// What is aligned goes straight, the few bytes before and behind do not.
	head := min(int64(len(b)), -off&(directio.Align-1))
	middle := (int64(len(b)) - head) &^ (directio.Align - 1)
	for _, part := range [][2]int64{{0, head}, {head, head + middle}, {head + middle, int64(len(b))}} {
		piece := b[part[0]:part[1]]
		switch {
		case len(piece) == 0:
			continue
		case directio.Fits(piece, off+part[0]):
			_, err = t.direct.WriteAt(piece, off+part[0])
		default:
			_, err = t.f.WriteAt(piece, off+part[0])
		}
		if err != nil {
			return fmt.Errorf("at %d: %w", off+part[0], noSpace(err))
		}
	}
	return nil
}

func (t *sink) zero(ctx context.Context, off, n int64) error {
	return t.s.writing(func() error { return blockdev.ZeroRange(ctx, t.f, off, n) })
}

// run returns how much of b, which lies at off, is of one sort: data, or zeros
// worth leaving out, which are whole grains and at least that many bytes.
func run(b []byte, off, worth int64) (n int64, zeros bool) {
	grain := func(at int64) int64 { return min(int64(len(b)), at+zeroGrain-(off+at)%zeroGrain) }
	for begin := int64(0); begin < int64(len(b)); {
		end := begin
		for end < int64(len(b)) && (off+end)%zeroGrain == 0 && isZero(b[end:grain(end)]) {
			end = grain(end)
		}
		switch {
		case end-begin >= worth && begin > 0:
			return begin, false
		case end-begin >= worth:
			return end, true
		case end == begin:
			end = grain(begin)
		}
		begin = end
	}
	return int64(len(b)), false
}

// zeros is compared with; it is never written to.
var zeros [zeroGrain]byte

// isZero looks at the first word first, which tells most data from zeros.
func isZero(b []byte) bool {
	if len(b) >= 8 && binary.NativeEndian.Uint64(b) != 0 {
		return false
	}
	return bytes.Equal(b, zeros[:len(b)])
}
