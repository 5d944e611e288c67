// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"fmt"

	"diskhook/storage/failure"
)

// Image is an export as who walks through it uses one: any length at any place,
// and where it is zero. Its methods may be called from any goroutine.
type Image struct {
	// Size of the export in bytes.
	Size int64
	// ReadOnly says that the server takes no writes.
	ReadOnly bool

	client  *Client
	stop    func() bool
	extents bool // the server knows where it is zero
}

// OpenImage connects to an export ("" is the server's default). network and
// address are those of net.Dial. When ctx ends the connection is cut, so that a
// server that hangs does not hang the caller: every call then fails. A server
// that is not there is a failure.Temporary, an export that is not a
// failure.NotFound.
func OpenImage(ctx context.Context, network, address, export string) (*Image, error) {
	conn, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	i := &Image{}
	var x Export
	err = bounded(ctx, conn, func() (err error) {
		x, i.extents, err = greetForExtents(conn, export)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nbd %s: %w", address, err)
	}
	i.Size, i.ReadOnly = x.Size, x.Flags&FlagReadOnly != 0
	i.client = newClient(conn, x)
	i.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	return i, nil
}

// Close says goodbye and closes the connection. What was written is flushed
// only if Flush said so.
func (i *Image) Close() {
	_ = i.client.send(0, Request{Command: Disconnect})
	i.stop()
	_ = i.client.Close()
}

// do runs one request until it or the connection ends. into is what a Read
// reads into.
func (i *Image) do(r Request, into []byte) error {
	return i.client.run(context.Background(), r, &pending{into: into})
}

// maxZeroes is the most that one request zeroes, or describes.
const maxZeroes = 1 << 30

// ReadAt fills p from off.
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	done, err := i.pieces(off, int64(len(p)), MaxRequest, func(at, n int64) error {
		return i.do(Request{Command: Read, Offset: uint64(at), Length: uint32(n)}, p[at-off:at-off+n])
	})
	return int(done), err
}

// WriteAt writes p at off.
func (i *Image) WriteAt(p []byte, off int64) (int, error) {
	done, err := i.pieces(off, int64(len(p)), MaxRequest, func(at, n int64) error {
		return i.do(Request{Command: Write, Offset: uint64(at), Data: p[at-off : at-off+n]}, nil)
	})
	return int(done), err
}

// WriteZeroes makes a range read as zeros. The image may punch a hole there.
func (i *Image) WriteZeroes(off, n int64) error {
	if i.client.Flags&FlagWriteZeroes != 0 {
		_, err := i.pieces(off, n, maxZeroes, func(at, n int64) error {
			return i.do(Request{Command: WriteZeroes, Offset: uint64(at), Length: uint32(n)}, nil)
		})
		return err
	}
	zeros := make([]byte, max(0, min(n, 1<<20)))
	_, err := i.pieces(off, n, int64(len(zeros)), func(at, n int64) error {
		return i.do(Request{Command: Write, Offset: uint64(at), Data: zeros[:n]}, nil)
	})
	return err
}

// pieces goes through n bytes from off in requests of at most most bytes. It
// says how many bytes are done.
func (i *Image) pieces(off, n, most int64, do func(at, n int64) error) (done int64, err error) {
	if err := i.within(off, n); err != nil {
		return 0, err
	}
	for done < n {
		piece := min(n-done, most)
		if err := do(off+done, piece); err != nil {
			return done, err
		}
		done += piece
	}
	return done, nil
}

// Flush returns when everything that was written through this connection is on
// the disk. A server that cannot flush is an error.
func (i *Image) Flush() error {
	if i.client.Flags&FlagFlush == 0 {
		return failure.New(failure.Precondition, "the server cannot flush")
	}
	return i.do(Request{Command: Flush}, nil)
}

// Next describes the extent that begins at off: at most n bytes of it, and as
// much as the server says in one go. A server that cannot tell says data.
func (i *Image) Next(off, n int64) (Extent, error) {
	if err := i.within(off, n); err != nil {
		return Extent{}, err
	}
	if !i.extents || n == 0 {
		return Extent{Len: n}, nil
	}
	var x Extent
	r := Request{Command: blockStatus, Flags: onlyOne, Offset: uint64(off), Length: uint32(min(n, maxZeroes))}
	err := i.client.run(context.Background(), r, &pending{extent: &x})
	if x.Len == 0 { // it did not say
		return Extent{Len: n}, err
	}
	x.Len = min(x.Len, n)
	return x, err
}

func (i *Image) within(off, n int64) error {
	if off < 0 || n < 0 || off > i.Size-n {
		return failure.New(failure.Usage, "bytes %d to %d of an export of %d", off, off+n, i.Size)
	}
	return nil
}
