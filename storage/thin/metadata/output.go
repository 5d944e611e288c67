// SPDX-License-Identifier: Apache-2.0

package metadata

import (
	"fmt"
	"io"

	"diskhook/storage/failure"
)

// Target is where an image is written. Offsets, lengths and memory of requests
// are multiples of 4 KiB. Flush returns when what was written is durable.
type Target interface {
	io.WriterAt
	Flush() error
}

// chunk is how many blocks are written in one request.
const chunk = 256

// output writes blocks one behind the other. The blocks in use are those below next,
// but for what was given up.
type output struct {
	to    Target
	limit uint64 // blocks that may be used
	next  uint64 // the first block that is not in use
	buf   []byte // what is not written yet ends before next
	n     int
	given []span // up, and free
}

// span is a row of blocks.
type span struct{ first, end uint64 }

// allocate gives the place of the next block, to be filled and sealed before
// another is asked for.
func (o *output) allocate() ([]byte, uint64, error) {
	if o.next >= o.limit {
		return nil, 0, failure.New(failure.NoSpace, "%d metadata blocks are not enough", o.limit)
	}
	if o.n == len(o.buf) {
		if err := o.flush(); err != nil {
			return nil, 0, err
		}
	}
	b := o.buf[o.n : o.n+BlockSize]
	o.n, o.next = o.n+BlockSize, o.next+1
	return b, o.next - 1, nil
}

// append writes a copy of b, sealed.
func (o *output) append(b []byte, k kind) (uint64, error) {
	place, number, err := o.allocate()
	if err == nil {
		copy(place, b)
		seal(place, number, k)
	}
	return number, err
}

func (o *output) flush() error {
	if o.n == 0 {
		return nil
	}
	first := o.next - uint64(o.n/BlockSize)
	if _, err := o.to.WriteAt(o.buf[:o.n], int64(first)*BlockSize); err != nil {
		return failure.Full(fmt.Errorf("metadata block %d: %w", first, err))
	}
	o.n = 0
	return nil
}
